"""The main job end to end on a tiny model: artefacts, reuse, resuming after SIGKILL, and every kind of bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

Cai = Callable[..., tuple[int, str, str]]
ARMS = {"pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot"}


def test_a_run_leaves_six_measured_arms_and_a_report(tiny_run: Path) -> None:
    results = tiny_run / "results"
    responses = pd.read_parquet(results / "responses.parquet")
    assert set(responses["arm"]) == ARMS
    assert set(responses.loc[responses["step"].notna(), "arm"]) == ARMS - {"pretrained", "sl_cai"}
    for suite, metric in (
        ("elo", "elo_harmlessness"),
        ("elo", "elo_helpfulness"),
        ("pm_score", "pm_score"),
        ("evasiveness", "evasive_rate"),
        ("goodharting", "boilerplate_rate"),
    ):
        summary = pd.read_parquet(results / suite / "summary.parquet")
        rows = summary[(summary["metric"] == metric) & summary["step"].isna()]
        assert set(rows["arm"]) == ARMS
        assert rows[["estimate", "low", "high"]].notna().all(axis=None)
        assert ((rows["low"] <= rows["estimate"]) & (rows["estimate"] <= rows["high"])).all()
    chains = pd.read_parquet(results / "chains.parquet")
    assert set(chains["mode"]) == {"critiqued", "direct"}
    assert set(chains["revision"]) == {0, 1, 2, 3, 4}
    first = chains[chains["revision"] == 0].groupby("prompt")["response"]
    assert (first.nunique() == 1).all()  # critiqued, direct and few-principle chains begin with the same answers
    assert first.size().eq(3).all()
    assert responses["ended"].dtype == bool
    assert chains["ended"].dtype == bool
    assert set(pd.read_parquet(results / "feedback.parquet")["mode"]) == {"plain", "cot"}
    assert set(chains["n_principles"]) == {2, 16}
    claims = pd.read_parquet(results / "claims.parquet")
    measured = set(claims.loc[claims["verdict"] != "not measured", "id"])
    assert measured >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15, 16}
    assert len(claims) == 16
    assert set(claims["verdict"]) <= {"underpowered", "judge cannot tell", "not measured"}
    about = json.loads((tiny_run / "run.json").read_text())
    assert about["human_harm_labels"]["hh_rlhf"] > 0
    assert about["human_harm_labels"]["rl_cai"] == 0
    learned = pd.read_parquet(results / "learned.parquet")
    assert set(learned["arm"]) == {"helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot"}
    assert (learned["estimate"] - (learned["end"] - learned["start"])).abs().max() < 1e-6
    along = pd.read_parquet(results / "goodharting" / "overoptimisation.parquet")
    assert set(along["arm"]) == ARMS - {"pretrained", "sl_cai"}
    assert (along.groupby("arm")["step"].nunique() == 2).all()
    assert (along.loc[along["step"] == along["step"].max(), "kl"] > 0).all()
    html = (tiny_run / "report" / "index.html").read_text()
    assert all(arm in html for arm in ARMS)
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert (tiny_run / "report" / "summary.md").is_file()
    json.loads((tiny_run / "report" / "summary.json").read_text())


def test_train_and_heldout_share_no_prompt(tiny_run: Path) -> None:
    measured = set(pd.read_parquet(tiny_run / "results" / "responses.parquet")["prompt"])
    trained = set(pd.read_parquet(tiny_run / "results" / "chains.parquet")["prompt"])
    preferences = pd.read_parquet(next((tiny_run / "stages" / "data").glob("*/preferences.parquet")))
    seen = set(preferences.loc[preferences["split"] != "heldout", "prompt"])
    assert not measured & (trained | seen)


def test_an_arm_loads_without_peft_and_a_snapshot_has_a_card(tiny_run: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = next((tiny_run / "stages" / "rl_cai").glob("*/model"))
    assert not (folder / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(folder)
    card = next((tiny_run / "stages" / "rl_cai").glob("*/snapshots/step-*/README.md")).read_text()
    assert "rl_cai" in card


def test_a_second_run_does_nothing(cai: Cai, tiny_experiment: Path, tiny_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("manifest.json")}
    code, out, _ = cai("run", tiny_experiment, "--out", tiny_run)
    assert code == 0
    assert f"{len(before)} of {len(before)} stages done" in out
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("manifest.json")} == before


def test_what_is_deleted_from_results_or_report_comes_back(
    cai: Cai, tiny_experiment: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    tables = {path: path.read_bytes() for path in (run / "results").rglob("*.parquet")}

    def harms() -> Iterator[Path]:
        for name in ("results", "report", "run.json", "results/claims.parquet", "results/elo/summary.parquet"):
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield path

    for path in harms():
        code, _, errors = cai("run", tiny_experiment, "--out", run)
        assert code == 0, errors
        assert path.exists()
        assert {path: path.read_bytes() for path in (run / "results").rglob("*.parquet")} == tables
        assert (run / "report" / "index.html").is_file()


def test_a_damaged_model_is_named_and_made_again(
    cai: Cai, tiny_experiment: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(tiny_run, run)
    assert cai("verify", run)[0] == 0
    weights = next(run.glob("stages/sl_cai/*/model/model.safetensors"))
    whole = weights.read_bytes()
    times = weights.stat()
    weights.write_bytes(whole[:-64] + bytes(64))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    code, out, _ = cai("verify", run)
    assert code == 1
    assert "model/model.safetensors is not what the stage wrote" in out
    code, out, errors = cai("run", tiny_experiment, "--out", run)
    assert code == 0, errors
    assert "sl_cai" in out
    assert "model/model.safetensors is not what the stage wrote; it is made again" in out
    assert weights.read_bytes() == whole
    assert cai("verify", run)[0] == 0


def test_verify_of_no_run_is_one_line(cai: Cai, tmp_path: Path) -> None:
    code, _, errors = cai("verify", tmp_path)
    assert code == 2
    assert "no finished stage here" in errors


def test_plan_as_json(cai: Cai, tiny_experiment: Path, tmp_path: Path) -> None:
    code, out, _ = cai("plan", tiny_experiment, "--out", tmp_path, "--json")
    rows = json.loads(out)
    assert code == 0
    assert all(set(row) == {"stage", "status", "key", "needs", "compute"} for row in rows)
    assert [row["stage"] for row in rows[-2:]] == ["results", "report"]
    assert rows[-1]["needs"] == ["results"]


def test_plan_shows_every_stage(cai: Cai, tiny_experiment: Path, tiny_run: Path, tmp_path: Path) -> None:
    code, out, _ = cai("plan", tiny_experiment, "--out", tiny_run)
    assert code == 0
    assert "done" in out
    assert "to do" not in out
    _, out, _ = cai("plan", tiny_experiment, "--out", tmp_path)
    assert "to do" in out
    assert "done" not in out


def test_claims_models_and_report_read_the_run(cai: Cai, tiny_run: Path) -> None:
    code, out, _ = cai("claims", tiny_run, "--json")
    assert code == 0
    assert len(json.loads(out)) == 16
    assert cai("claims", tiny_run)[0] == 0
    assert "rl_cai" in cai("models", tiny_run)[1]
    assert "index.html" in cai("report", tiny_run)[1]


def start(experiment: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness.cli", "run", str(experiment), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the child.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, heard)


def test_killed_in_the_middle_of_ppo_it_ends_with_the_same_artefacts(tiny_model: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "killed.yaml"
    experiment.write_text(
        f"name: killed\nmodels: {{base: {tiny_model}}}\narms: [helpful_only]\nsuites: [pm_score]\nreport_to: none\n"
        "scale: {redteam_prompts: 2, helpful_prompts: 6, heldout_prompts: 2, preference_pairs: 4, gold_pairs: 4,\n"
        "        max_new_tokens: 8, batch_size: 8}\n"
        "revise: {rounds: 1}\npm: {epochs: 1}\nlora: {rank: 4, alpha: 8}\n"
        "rl: {updates: 24, rollouts_per_update: 4, minibatch_size: 4, snapshots: 1}\n"
    )
    runs = {name: tmp_path / name for name in ("alone", "killed")}
    alone, process = start(experiment, runs["alone"]), start(experiment, runs["killed"])
    deadline = time.monotonic() + 120
    while not list(runs["killed"].glob("stages/helpful_only/*.partial/checkpoint/*")):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline, "PPO never began"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(runs["killed"].glob("stages/helpful_only/*/manifest.json"))
    for process in (alone, start(experiment, runs["killed"])):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
    weights, logs = {}, {}
    for name, folder in runs.items():
        (arm,) = (path.parent for path in folder.glob("stages/helpful_only/*/manifest.json"))
        weights[name] = (arm / "model" / "model.safetensors").read_bytes()
        logs[name] = (arm / "training.parquet").read_bytes()
    assert weights["alone"] == weights["killed"]
    assert logs["alone"] == logs["killed"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [x", "not valid YAML"),
        ("name: x\narms: [rl_cay]", "unknown arm 'rl_cay'"),
        ("name: x\nsuites: [elos]", "suites: elos: no such suite; choose from elo, pm_score"),
        ("name: x\nsuites: [hhh]", "suite hhh needs the HHH comparisons"),
        ("name: x\ndata: {hh_rlhf: ./no/such/folder}", "not found"),
        ("name: x\ndata: {redteam_prompts: broken.jsonl}", "line 2: not valid JSON"),
        ("name: x\ndata: {redteam_prompts: empty.jsonl}", "prompt set is empty"),
        ("name: x\nconstitution: twice.yaml", "twice"),
        ("name: x\nmodels: {base: ./no/such/model}", "model folder not found"),
        ("name: x\nmodels: {base: nobody/no-such-model}", "cannot be loaded"),
    ],
)
def test_bad_input_is_one_clear_line(cai: Cai, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "empty.jsonl").write_text("")
    principle = "  - {id: one, critique: c, revision: r}\n"
    comparison = "comparison:\n  - {id: two, question: q}\n"
    (tmp_path / "twice.yaml").write_text(f"name: t\ncritique_revision:\n{principle * 2}{comparison}")
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    code, out, errors = cai("run", file, "--out", tmp_path / "run")
    assert code == 2
    assert expected in errors
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in out + errors


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_shortage_of_pairs_is_told_before_anything_is_begun(cai: Cai, tmp_path: Path, command: str) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("name: x\nscale: {preference_pairs: 135296}")
    code, _, errors = cai(command, file, "--out", tmp_path / "run")
    assert code == 2
    assert "scale.preference_pairs: 135,296 asked, and there are 68 helpful preference pairs" in errors
    assert not (tmp_path / "run" / "stages").exists()


def test_an_imported_constitution_and_data_in_hh_layout(
    cai: Cai, tiny_model: Path, outside_data: Path, tmp_path: Path
) -> None:
    constitution = tmp_path / "paper.yaml"
    assert cai("constitutions", "import", outside_data / "paper" / "prompts", "--out", constitution)[0] == 0
    file = tmp_path / "real.yaml"
    file.write_text(
        f"name: real\nmodels: {{base: {tiny_model}}}\nconstitution: {constitution}\n"
        "arms: [rl_cai_cot]\nsuites: [pm_score]\nreport_to: none\n"
        f"data: {{hh_rlhf: {outside_data / 'hh-rlhf'}, helpful: {outside_data / 'helpful-alpacaeval'}}}\n"
        "scale: {redteam_prompts: 3, helpful_prompts: 3, heldout_prompts: 3, preference_pairs: 4, gold_pairs: 4,\n"
        "        max_new_tokens: 6, batch_size: 4}\n"
        "revise: {rounds: 2}\npm: {epochs: 1}\nlora: {rank: 4, alpha: 8}\n"
        "rl: {updates: 1, rollouts_per_update: 2, minibatch_size: 2, snapshots: 0}\n"
    )
    code, _, errors = cai("run", file, "--out", tmp_path / "run")
    assert code == 0, errors
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert all("stand-in" not in note for note in about["data"])


def test_help_answers_fast_and_shows_examples(cai: Cai) -> None:
    code, out, _ = cai("run", "--help")
    assert code == 0
    assert "cai run experiments/demo.yaml" in out
    loaded = (
        "import sys; import harness.cli; print([m for m in ('torch', 'pandas', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_says_that_nothing_is_lost(tiny_experiment: Path, tmp_path: Path) -> None:
    process = start(tiny_experiment, tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stages/data/*/manifest.json")):
        assert time.monotonic() < deadline, "the run never began"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip().splitlines()[-1].startswith("stopped; what is finished is kept")
    assert "Traceback" not in errors.decode()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_models_own_code_runs_only_where_the_experiment_says_so(
    cai: Cai, tmp_path: Path, tiny_model: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.errors import UserError
    from harness.models.checkpoints import TRUST
    from harness.runner import local

    def execute(*_: object, **__: object) -> None:
        raise UserError(f"trust is {os.environ.get(TRUST)}")

    monkeypatch.setenv(TRUST, "0")
    monkeypatch.setattr(local, "execute", execute)
    file = tmp_path / "x.yaml"
    file.write_text(f"name: x\nmodels: {{base: {tiny_model}, trust_remote_code: {str(trusted).lower()}}}\n")
    code, _, error = cai("run", file, "--out", tmp_path / "run")
    assert code != 0
    assert f"trust is {int(trusted)}" in error
