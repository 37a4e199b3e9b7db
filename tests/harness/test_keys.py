"""What makes which stage stale: a row for every setting, every declared file, and definitions of every module."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import code, data, graph
from harness.experiment import Compute, Experiment
from harness.graph import Stage
from pipelines import arms
from reports import collect
from suites import registry, stages

ROOT = code.ROOT
RL = {"helpful_only", "hh_rlhf", "rl_cai", "rl_cai_cot"}
GOLD = {"gold.helpful", "gold.harmless"}
PMS = GOLD | {
    "pm.helpful_only",
    "pm.hh_rlhf",
    "pm.rl_cai",
    "pm.rl_cai_cot",
    "pm.rl_cai.hard",
    *(f"pm.rl_cai.one_principle_{number}" for number in (1, 2, 3)),
}
CHAINS = {"chains.critiqued", "chains.direct", "chains.1_principles"}
ANSWERS = {"first_answers", "helpful_responses", "response_pairs"}
SINGLE = {f"feedback.one_principle_{number}" for number in (1, 2, 3)}
LABELS = {"feedback.plain", "feedback.cot"} | SINGLE
SAMPLES = {f"sample.{arm}" for arm in (*RL, "pretrained", "sl_cai")}
ALONG = {f"along.{arm}" for arm in RL}
LEARNED = {f"learned.{arm}" for arm in (*RL, "sl_cai")}
SCORED = {"responses", "chains"}
SUITES = set(registry.names())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name in ("hhh.jsonl", "hhh2.jsonl", "ratings.jsonl", "redteam.jsonl", "helpful.jsonl"):
        (folder / name).write_text(f'{{"prompt": "{name}"}}\n')
    (folder / "own.py").write_text("def score(prompts, responses): ...\n")
    for split in ("train", "test"):
        for kind in ("harmless-base", "helpful-base"):
            (folder / "hh" / kind).mkdir(parents=True, exist_ok=True)
            (folder / "hh" / kind / f"{split}.jsonl").write_text("{}\n")
    return folder


def experiment(files: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "x",
        "suites": tuple(SUITES),
        "models": {"base": "some/base"},
        "data": {"hhh": str(files / "hhh.jsonl")},
        "revise": {"also_direct": True, "also_principles": (1,)},
        "pm": {"variants": ("hard", "one_principle")},
        "lora": {"rank": 8},
    }
    for name, value in changes.items():
        section, dot, key = name.partition(".")
        raw[section] = {**(raw.get(section) or {}), key: value} if dot else value
    return Experiment.model_validate(raw)


def planned(of: Experiment) -> list[Stage]:
    training = arms.plan(of)
    suites = stages.plan(of, training.arms, training.pms, training.chains, training.data)
    made = [stage for stage in training.arms.values() if stage is not None]
    targets = [*made, *training.labels.values(), *training.pms.values(), *suites.values()]
    return graph.in_order([collect.plan(of, Path("x.yaml"), training.arms, targets)])


def own_keys(of: Experiment) -> dict[str, str]:
    """Each stage's key with those of its inputs held fixed, so that only what it reads itself changes it.

    The stage `results` writes the experiment down, so every setting changes it.
    """
    stages = planned(of)
    names = {stage.name: stage.name for stage in stages}
    return {stage.name: graph.stage_key(stage, names) for stage in stages}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if name in after and after[name] != before[name]}


# ---------------------------------------------------------------- settings

ROWS: list[tuple[str, Any, set[str]]] = [
    ("name", "y", set()),
    ("seed", 1, {"data"} | PMS | RL | CHAINS | ANSWERS | LABELS | {"sl_cai"} | SAMPLES | SUITES | LEARNED | {"judges"}),
    ("seeds", (0, 1), set()),  # each of its runs has a seed
    ("models.base", "other/base",
     PMS | {"helpful_only", "hh_rlhf", "sl_cai", "sample.pretrained", "along.helpful_only", "along.hh_rlhf", "hhh"}
     | {"learned.sl_cai", "feedback.plain"} | SINGLE),
    ("models.bases", ("a/base", "b/base"), set()),  # each of its runs has a base
    ("models.feedback", "other/feedback", {"feedback.plain", "hhh"} | SINGLE),
    ("models.feedback_cot", "other/feedback", {"feedback.cot"}),
    ("models.judge", "feedback", {"elo", "judges"}),
    ("models.engine", "vllm", CHAINS | ANSWERS | LABELS | SAMPLES | {"hhh"}),
    ("models.trust_remote_code", True, set()),
    ("data.hh_rlhf", "hh", {"data"}),
    ("data.helpful", "hh/helpful-base", {"data"}),
    ("data.harmless_pairs", "redteam.jsonl", {"data"}),
    ("data.helpful_pairs", "redteam.jsonl", {"data"}),
    ("data.redteam_prompts", "redteam.jsonl", {"data"}),
    ("data.helpful_prompts", "helpful.jsonl", {"data"}),
    ("data.harm_ratings", "ratings.jsonl", {"harmfulness"}),
    ("data.hhh", "hhh2.jsonl", {"hhh"}),
    ("annotator.harmless", "own.py", {"data"}),
    ("annotator.helpful", "own.py", {"data"}),
    ("constitution", "critique", CHAINS),
    ("constitution", "comparison", LABELS),
    ("constitution", "tags", set()),
    ("arms", ("pretrained", "sl_cai", "rl_cai"), {"responses", "goodharting"}),
    ("suites", ("elo", "hhh"), set()),
    ("scale.redteam_prompts", 25, {"data"}),
    ("scale.helpful_prompts", 25, {"data"}),
    ("scale.heldout_prompts", 17, {"data"}),
    ("scale.samples_per_prompt", 2, SAMPLES),
    ("scale.written_prompts", {"chains": 4, "rl": 2}, {"data", "first_answers", "response_pairs"} | RL),
    ("scale.preference_pairs", 33, {"data"}),
    ("scale.gold_pairs", 33, {"data"}),
    ("scale.equal_labels", False, {"data"}),
    ("scale.best_of", 9, set()),  # there is no arm best_of_n
    ("scale.max_new_tokens", 33, RL | CHAINS | ANSWERS | {"sl_cai"} | SAMPLES),
    ("scale.max_prompt_tokens", 129, {"data", "sl_cai"}),
    ("scale.batch_size", 33, set()),
    ("lora.rank", 9, PMS | RL | {"sl_cai"}),
    ("lora.alpha", 9, PMS | RL | {"sl_cai"}),
    ("lora.top_layers", 1, PMS | RL | {"sl_cai"}),
    ("revise.rounds", 3, CHAINS),
    ("revise.critique", False, {"sl_cai"}),  # it is trained on the other chains
    ("revise.also_direct", False, {"chains"}),
    ("revise.also_principles", (1, 4), {"chains"}),
    ("revise.context", "chain", CHAINS),
    ("revise.replacement", False, CHAINS),
    ("revise.temperature", 0.5, CHAINS),
    ("revise.few_shot", False, CHAINS),
    ("sft.epochs", 2, {"sl_cai"}),
    ("sft.learning_rate", 1.0, {"sl_cai"}),
    ("sft.batch_size", 9, {"sl_cai"}),
    ("sft.micro_batch_size", 2, {"sl_cai"}),
    ("sft.train_on", "all", {"sl_cai"}),
    ("sft.helpful_per_prompt", 2, {"helpful_responses"}),
    ("sft.heldout", 0.2, {"sl_cai"}),
    ("feedback.clamp", None, {"feedback.cot"}),
    ("feedback.cot_tokens", 9, {"feedback.cot", "hhh"}),
    ("feedback.few_shot", False, LABELS),
    ("pm.epochs", 1, PMS),
    ("pm.learning_rate", 1.0, PMS),
    ("pm.center_rewards", 0.01, PMS),
    ("pm.batch_size", 9, PMS),
    ("pm.micro_batch_size", 2, PMS),
    ("pm.max_length", 99, PMS | RL | SCORED | ALONG | {f"learned.{arm}" for arm in RL} | {"goodharting", "judges"}),
    ("pm.variants", ("hard",), set()),
    ("rl.algorithm", "rloo", RL),
    ("rl.algorithm", "grpo", RL),
    ("rl.updates", 7, RL),
    ("rl.rollouts_per_update", 9, RL),
    ("rl.minibatch_size", 4, RL),
    ("rl.gradient_accumulation", 2, RL),
    ("rl.epochs", 2, RL),
    ("rl.learning_rate", 1.0, RL),
    ("rl.kl_coef", 0.1, RL),
    ("rl.kl_target", 1.0, RL),
    ("rl.missing_eos_penalty", 1.0, RL),
    ("rl.reward_normalisation", "reference", RL),
    ("rl.value_pretraining", 1, RL),
    ("rl.snapshots", 1, RL),
    ("rl.result", "best_proxy", {f"{stage}.{arm}" for stage in ("sample", "along") for arm in RL}),
    ("rl.result", "kl:5", {f"{stage}.{arm}" for stage in ("sample", "along") for arm in RL}),
    ("rl.checkpoint_every", 2, set()),
    ("rl.engine", "vllm", RL),
    ("report_to", "none", set()),
    ("expect", {"no_decisive_claims": True}, set()),
]  # fmt: skip


def value_of(name: str, value: Any, files: Path) -> Any:
    """The row's value; a path within `files`; a constitution with one thing changed."""
    if name.startswith("data."):
        return str(files / value)
    if name.startswith("annotator."):
        return f"scorer:{files / value}"
    if name != "constitution":
        return value
    import constitutions

    shipped = constitutions.load("default")
    first = {"critique": shipped.critique_revision, "comparison": shipped.comparison, "tags": shipped.comparison}[value]
    text = {"critique": "critique", "comparison": "question"}.get(value)
    changed = first[0].model_copy(update={text: "Another text."} if text else {"tags": ["another"]})
    part = "critique_revision" if value == "critique" else "comparison"
    constitutions.dump(shipped.model_copy(update={part: [changed, *first[1:]]}), files / f"{value}.yaml")
    return str(files / f"{value}.yaml")


@pytest.mark.parametrize(("name", "value", "direct"), ROWS, ids=[f"{name}={value}" for name, value, _ in ROWS])
def test_a_setting_makes_stale_what_reads_it_and_no_more(files: Path, name: str, value: Any, direct: set[str]) -> None:
    other = experiment(files, **{name: value_of(name, value, files)})
    assert changed(own_keys(experiment(files)), own_keys(other)) == direct | {"results"}


def test_what_functions_label_and_judge_by_makes_stale_what_reads_it(files: Path) -> None:
    """`annotator.flip` and the stage of feedback mean something only where a function labels."""
    own = f"scorer:{files / 'own.py'}"
    by = {"annotator": {"harmless": own}, "models": {"base": "some/base", "feedback": own, "judge": own}}
    functions = by | {"suites": tuple(SUITES - {"hhh"}), "pm.variants": ("hard",)}
    before = own_keys(experiment(files, **functions))
    assert changed(before, own_keys(experiment(files, **(functions | {"annotator": {"harmless": own, "flip": 0.1}})))) \
        == {"data", "results"}  # fmt: skip
    real = (files / "own.py").read_text()
    (files / "own.py").write_text(real + "# other")
    assert changed(before, own_keys(experiment(files, **functions))) == (
        {"data", "feedback.plain", "elo", "judges", "goodharting"}
    )
    (files / "own.py").write_text(real)


def test_every_setting_has_its_row() -> None:
    leaves = set()
    for section, value in Experiment(name="x").model_dump().items():
        leaves |= {f"{section}.{key}" for key in value} if isinstance(value, dict) else {section}
    assert leaves - {name for name, _, _ in ROWS} == {
        "methods",  # files of code, whose stages are the user's
        "annotator.flip",  # of no meaning where people label; see the test above
        *(f"compute.{kind}" for kind in Compute.model_fields),  # see the test below
    }


def test_what_stages_get_of_a_machine_is_in_no_key(files: Path) -> None:
    asked = {kind: {"cpus": 3, "gpus": 1, "memory": 5} for kind in Compute.model_fields}
    assert own_keys(experiment(files, compute=asked)) == own_keys(experiment(files))


def test_a_stale_input_makes_its_dependants_stale(files: Path) -> None:
    def keys(of: Experiment) -> dict[str, str]:
        found: dict[str, str] = {}
        for stage in planned(of):
            found[stage.name] = graph.stage_key(stage, found)
        return found

    reached = changed(keys(experiment(files)), keys(experiment(files, **{"sft.epochs": 2})))
    after_sl_cai = {"sl_cai", "response_pairs"} | LABELS | {"rl_cai", "rl_cai_cot", "along.rl_cai", "along.rl_cai_cot"}
    pms = {name for name in PMS if name.startswith("pm.rl_cai")}
    samples = {"sample.sl_cai", "sample.rl_cai", "sample.rl_cai_cot", "responses"}
    learned = {"learned.sl_cai", "learned.rl_cai", "learned.rl_cai_cot"}
    assert reached == after_sl_cai | pms | samples | learned | SUITES - {"hhh"} | {"judges", "results", "report"}


# ---------------------------------------------------------------- files and models


def test_a_file_makes_stale_what_declares_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        data.SHIPPED / "preferences_harmless.jsonl": {"data"},
        data.SHIPPED / "preferences_helpful.jsonl": {"data"},
        data.SHIPPED / "redteam.jsonl": {"data"},
        data.SHIPPED / "helpful.jsonl": {"data"},
        data.SHIPPED / "harmfulness_ratings.jsonl": {"harmfulness"},
        files / "hhh.jsonl": {"hhh"},
        ROOT / "suites" / "evasiveness_examples.jsonl": {"evasiveness"},
        ROOT / "suites" / "nonevasive_pairs.jsonl": {"judges"},
        ROOT / "suites" / "claims.yaml": {"results"},
        ROOT / "reports" / "paper.yaml": {"report"},
        **{ROOT / "reports" / f"{name}.html": {"report"} for name in ("template", "page", "macros")},
    }
    declared = {Path(file) for stage in planned(experiment(files)) for file in stage.files.values()}
    assert declared == set(rows)
    before, real = own_keys(experiment(files)), graph.fingerprint
    for edited, direct in rows.items():
        monkeypatch.setattr(graph, "fingerprint", lambda path, edited=edited: real(path) + "x" * (path == edited))
        assert changed(before, own_keys(experiment(files))) == direct


def test_data_in_hh_layout_is_hashed_by_content_wherever_it_lies(files: Path, tmp_path: Path) -> None:
    import shutil

    def key(folder: Path) -> str:
        return own_keys(experiment(files, **{"data.hh_rlhf": str(folder)}))["data"]

    shutil.copytree(files / "hh", tmp_path / "elsewhere")
    before = key(tmp_path / "elsewhere")
    assert before == key(files / "hh")
    (tmp_path / "elsewhere" / "harmless-base" / "notes.txt").write_text("not read")
    assert before == key(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "harmless-base" / "test.jsonl").write_text('{"chosen": "x"}\n')
    assert before != key(tmp_path / "elsewhere")


def test_new_weights_make_stale_what_loads_them(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: direct for name, _, direct in ROWS if name in ("models.base", "models.feedback")}
    of = experiment(files, models={"base": "a/base", "feedback": "a/feedback"})
    before, real = own_keys(of), graph.identity
    for model, direct in (
        ("a/base", rows["models.base"] - rows["models.feedback"]),
        ("a/feedback", rows["models.feedback"]),
    ):
        monkeypatch.setattr(graph, "identity", lambda name, model=model: real(name) + "x" * (name == model))
        assert changed(before, own_keys(of)) == direct


# ---------------------------------------------------------------- code

ENGINES = CHAINS | ANSWERS | LABELS | SAMPLES | {"elo", "judges", "hhh"}  # all that may open a model to ask it
EDITS: list[tuple[str, str, set[str]]] = [
    ("harness/data.py", "select", {"data"}),
    ("harness/annotators.py", "relabel", {"data"}),
    ("harness/preferences.py", "table", {"data"}),
    ("harness/sources.py", "read", {"data"}),
    ("harness/hh_layout.py", "pairs_of_kind", {"data"}),
    ("harness/scoring.py", "scorer_of", {"data", "elo", "judges", "goodharting"}),  # a run by default has none
    ("harness/expect.py", "Expect", set()),
    ("harness/graph.py", "plan", set()),
    ("harness/manifest.py", "read", {"results"}),
    ("harness/runner/local.py", "execute", set()),
    ("harness/experiment/experiment.py", "load", set()),
    ("harness/experiment/training.py", "Rl", set()),
    ("harness/store.py", "locked", set()),
    ("harness/store.py", "versions", {"results"}),
    ("harness/cli/run.py", "run", set()),
    ("harness/models/server.py", "ServerGenerator", ENGINES),
    ("harness/models/transformers.py", "Generator", ENGINES),
    ("harness/compare.py", "ask", LABELS | {"elo", "judges", "hhh", "evasiveness"}),
    ("pipelines/sft.py", "train", {"sl_cai"}),
    ("pipelines/trainer.py", "run", PMS | RL | {"sl_cai"}),
    ("pipelines/preference_model.py", "train", PMS),
    ("pipelines/preference_model.py", "evaluate", PMS),
    ("pipelines/soft_label.py", "soft_label_loss", PMS),
    ("pipelines/ppo.py", "_Run", RL),
    ("pipelines/ppo_learner.py", "Learner", RL),
    ("pipelines/rollouts.py", "response_logits", RL),
    ("pipelines/rewards.py", "Running", RL),
    ("pipelines/ppo_math.py", "gae", RL),
    ("pipelines/rl.py", "train_rl", RL),
    ("pipelines/grouped.py", "train", RL),
    ("pipelines/dpo.py", "train_dpo", set()),
    ("pipelines/critique_revise.py", "run", CHAINS),
    ("pipelines/ai_feedback.py", "label", LABELS),
    ("pipelines/respond.py", "respond", ANSWERS),
    ("pipelines/harm_labels.py", "count", {"results"}),
    ("pipelines/arms.py", "plan", set()),
    ("suites/sample.py", "sample_arm", SAMPLES),
    ("suites/chosen.py", "saved", SAMPLES | ALONG),
    ("suites/chosen.py", "choose", set()),  # a run by default chooses nothing
    ("suites/sample.py", "score_responses", {"responses"}),
    ("suites/sample.py", "score_chains", {"chains"}),
    ("suites/along_rl.py", "measure_along", ALONG),
    ("suites/learned.py", "measure_reward", {f"learned.{arm}" for arm in RL}),
    ("suites/learned.py", "measure_likelihood", {"learned.sl_cai"}),
    ("suites/stages.py", "plan", set()),
    ("suites/stages.py", "_comparisons", {"hhh"}),
    ("suites/registry.py", "find", set()),
    ("suites/elo.py", "run", {"elo"}),
    ("suites/length_adjusted.py", "fit", {"elo"}),
    ("suites/expectations.py", "check", set()),
    ("suites/pm_score.py", "run", {"pm_score"}),
    ("suites/evasiveness.py", "run", {"evasiveness"}),
    ("suites/evasiveness_model.py", "classify", {"evasiveness"}),
    ("suites/goodharting.py", "run", {"goodharting"}),
    ("suites/boilerplate.py", "mine", {"goodharting", "results"}),
    ("suites/overoptimisation.py", "measure", {"goodharting"}),
    ("suites/harmfulness.py", "run", {"harmfulness"}),
    ("suites/hhh.py", "run", {"hhh"}),
    ("suites/evaluate.py", "measure", set()),
    ("suites/gate.py", "judge", set()),
    ("suites/claims.py", "judge", {"results"}),
    ("reports/collect.py", "collect", {"results"}),
    ("reports/figures.py", "frontier", {"report"}),
    ("reports/static.py", "render", {"report"}),
    ("reports/dashboard.py", "html_table", set()),
]  # fmt: skip


def edited(source: str, name: str) -> str:
    """`source` with a statement more in its definition `name`."""
    tree = ast.parse(source)
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)
    found.body.append(ast.parse("edited = 1").body[0])
    return ast.unparse(tree)


def reread() -> None:
    """Source files are read once a process; from here they are read anew."""
    code._module.cache_clear()
    refollow()


def refollow() -> None:
    """What was found in files is found anew; the files are not parsed again, which takes most of the time."""
    for cached in (code._references, code._source, code.sources, code._known):
        cached.cache_clear()


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(code, "_cache", lambda: tmp_path / "code.json")
    refollow()
    yield
    refollow()


def versions(files: Path) -> dict[str, str]:
    return {stage.name: code.version(stage.function, *stage.calls) for stage in planned(experiment(files))}


@pytest.fixture(scope="module")
def unedited(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache") / "code.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "_cache", lambda: cache)
        reread()
        return versions(files)


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(("file", "name", "direct"), EDITS, ids=[f"{file}:{name}" for file, name, _ in EDITS])
def test_an_edit_makes_stale_what_reaches_it(
    files: Path, unedited: dict[str, str], monkeypatch: pytest.MonkeyPatch, file: str, name: str, direct: set[str]
) -> None:
    text, parsed = code._text, code._module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "_text", lambda path: edited(text(path), name))
        module = parsed.__wrapped__(ROOT / file)
    monkeypatch.setattr(code, "_module", lambda path: module if path == ROOT / file else parsed(path))
    assert changed(unedited, versions(files)) == direct


def test_what_a_key_of_an_experiment_means_changes_nothing() -> None:
    """The strings under a class's attributes are documentation, as its docstring is."""
    told = 'class A:\n    """Doc."""\n\n    x: int = 1\n    """What x is."""\n'
    bare = "class A:\n    x: int = 1\n"
    other = "class A:\n    x: int = 2\n"
    dumps = [ast.dump(code._bare(ast.parse(text))) for text in (told, bare, other)]
    assert dumps[0] == dumps[1] != dumps[2]


def test_comments_docstrings_and_annotations_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = [
        'def run(x: int) -> int:\n    """Old."""\n    return helper(x)  # old\n\n\ndef helper(x):\n    return x\n',
        'def helper(x: float):\n    return x\n\n\ndef run(x):\n    """New."""\n\n    return helper(x)\n',
        "def run(x):\n    return helper(x)\n\n\ndef helper(x):\n    return x + 1\n",
        'def run(x):\n    return helper(x)\n\n\ndef helper(x):\n    return x\n\n\nprint("runs when imported")\n',
    ]
    versions = []
    for text in texts:
        (tmp_path / "own.py").write_text(text)
        reread()
        versions.append(code.version(edited, f"{tmp_path / 'own.py'}:run"))
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


@pytest.mark.usefixtures("forget")
def test_versions_are_kept_for_as_long_as_no_source_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_module", functools.cache(code._module.__wrapped__))  # what is edited stays in here
    first = code.version(data.select)
    computed = code._version
    monkeypatch.setattr(code, "_version", lambda *_: pytest.fail("computed again"))
    reread()  # as in a new process
    assert code.version(data.select) == first
    real = code._text
    monkeypatch.setattr(
        code, "_text", lambda path: edited(real(path), "select") if path == ROOT / "harness/data.py" else real(path)
    )
    monkeypatch.setattr(code, "_version", computed)
    reread()
    assert code.version(data.select) != first
    code._cache().write_text("[1")
    monkeypatch.setattr(code, "_text", real)
    reread()
    assert code.version(data.select) == first
