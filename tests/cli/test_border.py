"""What `cai` prints and how it ends, whatever is thrown at it: one line, no markup, no controls, no keys."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from harness.cli.console import Terminal, styled
from harness.errors import UserError
from tests import hostile

Cai = Callable[..., tuple[int, str, str]]


def printed(*what: object, **options: object) -> str:
    out = io.StringIO()
    Terminal(file=out, width=200).print(*what, **options)  # type: ignore[arg-type]  # rich's many options
    return out.getvalue()


@pytest.mark.parametrize("value", hostile.TEXTS)
def test_the_console_shows_data_as_data(value: str) -> None:
    from rich.table import Table

    table = Table(value or "x", title=value)
    table.add_row(value)
    table.add_row(styled(value, "green"))
    for shown in (printed(value), printed(styled(value, "bold")), printed(table)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown.replace("\t", ""))
    if value.isprintable() and 0 < len(value) < 100:
        for shown in (printed(value), printed(table)):
            assert value.strip() in shown


def test_a_status_and_the_bars_read_no_markup() -> None:
    from harness.cli.progress import Bars

    out = io.StringIO()
    console = Terminal(file=out, width=200)
    with console.status("[/INST] [bold]x"):
        pass
    with Bars(console) as bars:
        bars.stage("[bold]arm[/INST]", 1, 2).advance(1, 2, "[/x]")
        bars.progress.refresh()
    assert "[1/2] [bold]arm[/INST]" in out.getvalue()


def breaks(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `cai models` raise `error`."""

    def broken() -> None:
        raise error

    monkeypatch.setattr(cli.app.registered_commands[0], "callback", broken)


def first(app: object = cli.app) -> str:
    return str(cli.app.registered_commands[0].name)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a\nb"), KeyError("x"), RecursionError(), MemoryError(), SystemExit(0), SystemExit("x"),
              GeneratorExit(), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"), AssertionError()]
)  # fmt: skip
def test_the_unexpected_is_one_line_and_its_traceback_is_kept(
    cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    breaks(monkeypatch, error)
    code, out, said = cai(first())
    assert code == 2
    assert out == ""
    assert len(said.splitlines()) == 1
    assert said.startswith(f"error: unexpected: {type(error).__name__}")
    assert "Traceback" not in said
    (kept,) = re.findall(r"traceback is in (\S+);", said)
    content = Path(kept).read_text()
    assert "Traceback" in content
    assert f"def {breaks.__name__}" not in content
    assert "cai-harness" in content  # its version, for the report
    assert "report it" in said
    code, out, said = cai("--debug", first())
    assert code == 2
    assert "Traceback" in said
    assert cai(first(), "--debug")[0] == 2


def test_a_traceback_holds_no_key(cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    breaks(monkeypatch, ValueError("http://u:hunter2@h Bearer sk-1234567890abc"))
    _, _, said = cai("--debug", first())
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.txt"))
    for text in (said, kept):
        assert "***" in text
        assert "hunter2" not in text
        assert "sk-1234567890abc" not in text


def test_a_cache_that_cannot_be_written_hides_no_error(
    cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    breaks(monkeypatch, ZeroDivisionError("x"))
    code, _, said = cai(first())
    assert code == 2
    assert "unexpected: ZeroDivisionError" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("message", [t for t in hostile.TEXTS if t.strip()])
def test_an_error_message_is_one_line_as_it_is(cai: Cai, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    breaks(monkeypatch, UserError(message))
    code, _, said = cai(first())
    assert code == 2
    assert len(said.removesuffix("\n").split("\n")) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
    if message.isprintable():
        assert said.rstrip("\n") == f"error: {message}".rstrip()


def test_an_error_of_the_file_system_is_one_line(cai: Cai, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, PermissionError(13, "Permission denied", "/some/place"))
    assert cai(first()) == (2, "", "error: /some/place: Permission denied; check the path, its rights and the disk\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate"], "No such command"),
        (["eval", "--colour"], "No such option: --colour"),
        (["eval", "--cot", "x"], "'--cot'"),
        (["eval", "--cot", "-1"], "--cot"),
        (["claims"], "Missing argument"),
        (["constitutions", "show", "a", "b"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_with_the_help_to_ask_for(cai: Cai, arguments: list[str], expected: str) -> None:
    code, out, said = cai(*arguments)
    assert code == 2
    assert out == ""
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    assert expected in said
    assert re.search(r"see `cai( \w+)* --help`", said)


def test_ctrl_c_is_130(cai: Cai, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, KeyboardInterrupt())
    code, _, said = cai(first())
    assert code == 130
    assert said.startswith("stopped;")


def test_a_reader_that_goes_away_is_no_error(cai: Cai, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, BrokenPipeError(32, "Broken pipe"))
    code, _, said = cai(first())
    assert code == 1
    assert said == ""


def test_a_key_in_the_environment_is_never_printed(cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAI_API_KEY", "very-secret-words")
    code, out, said = cai("eval", tmp_path / "very-secret-words.jsonl")
    assert code == 2
    assert "very-secret-words" not in out + said


@pytest.mark.parametrize("name", hostile.NAMES)
def test_a_hostile_path_is_shown_in_one_line(cai: Cai, tmp_path: Path, name: str) -> None:
    for command in (["eval", "--"], ["compare", "--gate", "no.yaml", "x", "--"], ["claims", "--"], ["plan", "--"],
                    ["constitutions", "show", "--"], ["models", "--"]):  # fmt: skip
        code, out, said = cai(*command, tmp_path / "absent" / name)
        assert code == 2, (command, out, said)
        assert len(said.splitlines()) == 1
        assert "\x1b" not in out + said


def test_constitutions_are_shown_as_written(cai: Cai, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    raw = {
        "name": "x",
        "description": "[/INST] [bold]loud[/bold]",
        "license": "[red]none",
        "critique_revision": [{"id": "a", "tags": ["[x]"], "critique": "[/c] c", "revision": "r [b]"}],
        "comparison": [{"id": "b", "question": "[/q]?"}],
    }
    file.write_text(json.dumps(raw))
    code, out, said = cai("constitutions", "show", file)
    assert code == 0, said
    for text in ("[/INST] [bold]loud[/bold]", "[red]none", "[x]", "[/c] c", "r [b]", "[/q]?"):
        assert text in out


# ---------------------------------------------------------------- places that cannot be written


def table(folder: Path, n: int = 12, name: str = "a.jsonl", **more: object) -> Path:
    rows = [{"prompt": f"p{i}", "response": f"answer {i}", "arm": "a", "score": i} | more for i in range(n)]
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def impossible(folder: Path) -> list[Path]:
    (folder / "file").write_text("x")
    return [folder / "file", folder / "file" / "below", Path("/proc/no/such"), folder / ("x" * 300),
            hostile.symlink_loop(folder, "loop")]  # fmt: skip


@pytest.mark.parametrize("which", range(5))
def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(
    cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: int, tiny_experiment: Path
) -> None:
    from harness.runner import local
    from suites import evaluate

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    out = impossible(tmp_path)[which]
    file = table(tmp_path)
    monkeypatch.setattr(evaluate, "measure", never)
    monkeypatch.setattr(local, "execute", never)
    for command in (["eval", file, "--out", out], ["compare", file, file, "--out", out],
                    ["run", tiny_experiment, "--out", out]):  # fmt: skip
        code, _, said = cai(*command)
        assert code == 2, said
        assert "unexpected" not in said
        assert len(said.splitlines()) == 1
        assert re.search("cannot be written|is a file|name too long", said)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("command", ["claims", "report"])
def test_results_that_cannot_be_written(
    cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    from harness import store

    run = tmp_path / "run"
    assert cai("eval", table(tmp_path), "--suite", "pm_score", "--judge", "column:score", "--out", run)[0] == 0

    def readonly(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(run))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for problem, expected in ((readonly, "Read-only file system"), (full, "the disk is full")):
        for name in ("write_table", "write_text"):
            monkeypatch.setattr(store, name, problem)
        code, _, said = cai(command, run)
        assert code == 2
        assert expected in said
        assert "unexpected" not in said
        assert len(said.splitlines()) == 1


# ---------------------------------------------------------------- files of a run that are not what they were


@pytest.mark.parametrize(
    "content",
    ["[1]", "null", "3", "{", '{"scale": 3}', '{"scale": {"max_new_tokens": "x"}}', '{"seed": "x"}',
     '{"arms": 1, "models": [], "data": 3, "versions": []}'],
)  # fmt: skip
def test_a_run_json_that_is_no_mapping(cai: Cai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    from suites import evaluate

    def enough(*_: object, **__: object) -> None:
        raise UserError("it came to measuring")

    run = tmp_path / "run"
    file = table(tmp_path)
    assert cai("eval", file, "--suite", "pm_score", "--judge", "column:score", "--out", run)[0] == 0
    (run / "run.json").write_text(content)
    monkeypatch.setattr(evaluate, "measure", enough)
    for command in (["eval", file, "--suite", "pm_score", "--judge", "column:score", "--out", run],
                    ["compare", f"{run}:a", f"{run}:a", "--out", tmp_path / "out", "--judge", "column:score"],
                    ["claims", run], ["report", run]):  # fmt: skip
        code, _, said = cai(*command)
        assert code in (0, 1, 2)
        assert "unexpected" not in said
        assert len(said.splitlines()) <= 1


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", "-1"],
        ["--seed", str(2**70)],
        ["--seed", "1.5"],
        ["--max-new-tokens", "0"],
        ["--max-new-tokens", str(10**12)],
        ["--cot", str(10**12)],
        ["--limit", "0"],
        ["--limit", "-3"],
        ["--anchor", "nobody"],
        ["--anchor", "nobody", "--suite", "elo", "--judge", "column:score"],
        ["--anchor", "a"],
        ["--limit", "3"],
        ["--cot", "3"],
        ["--prompts", "x.jsonl"],
        ["--ratings", "x.jsonl"],
        ["--judge", "column:score", "--suite", "evasiveness"],
    ],
)
def test_options_that_cannot_be_or_that_nothing_reads_are_refused(cai: Cai, tmp_path: Path, options: list[str]) -> None:
    code, _, said = cai("eval", table(tmp_path), *options)
    assert code == 2, said
    assert len(said.splitlines()) == 1
    assert "unexpected" not in said


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999999999"])
def test_a_port_that_cannot_be(cai: Cai, tmp_path: Path, port: str) -> None:
    code, _, said = cai("dashboard", tmp_path, "--port", port)
    assert code == 2
    assert "--port" in said


def test_compare_takes_no_impossible_seed_or_length(cai: Cai, tmp_path: Path) -> None:
    file = table(tmp_path)
    for options in (["--seed", "-1"], ["--seed", str(2**70)], ["--max-new-tokens", str(10**12)]):
        code, _, said = cai("compare", file, file, *options)
        assert code == 2, said
        assert len(said.splitlines()) == 1


def test_sides_without_a_shared_prompt_are_not_all_clear(cai: Cai, tmp_path: Path) -> None:
    first, second = table(tmp_path, 40), tmp_path / "b.jsonl"
    rows = [{"prompt": f"q{i}", "response": f"answer {i}", "arm": "b", "score": i} for i in range(40)]
    second.write_text("\n".join(map(json.dumps, rows)))
    for shared in (0, 3):
        (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(r | {"prompt": f"{'p' if i < shared else 'q'}{i}"})
                                                    for i, r in enumerate(rows)))  # fmt: skip
        code, out, said = cai("compare", first, second, "--out", tmp_path / "out", "--judge", "column:score")
        assert code == 2, out + said
        assert "all clear" not in out
        assert "share" in out + said


# ---------------------------------------------------------------- code of the user's own


@pytest.mark.parametrize("raised", ["SystemExit(0)", "SystemExit('x')", "GeneratorExit()", "BaseException('x')"])
@pytest.mark.parametrize("where", ["{r}\ndef run(responses, *, seed): ...", "def run(responses, *, seed):\n    {r}"])
def test_a_suite_file_cannot_end_the_program(cai: Cai, tmp_path: Path, raised: str, where: str) -> None:
    suite = tmp_path / "mine.py"
    suite.write_text(where.format(r=f"raise {raised}"))
    code, _, said = cai("eval", table(tmp_path), "--suite", suite)
    assert code == 2
    assert "mine.py" in said
    assert "unexpected" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(0)",
        "def arms(experiment, training): raise SystemExit(0)",
        "def arms(experiment, training): return None",
        "def arms(experiment, training): return 3",
        "def arms(experiment, training): return {}",
        "def arms(experiment, training): return {'mine': None}",
        "def arms(experiment, training): return {'mine': 'x'}",
        "def arms(experiment, training): return {3: training.data}",
        "def arms(experiment, training): return {'../x': training.data}",
        "arms = 3",
        "def arms(): return {}",
        "def arms(experiment, training): return {'mine'",
        "import no_such_module",
    ],
)
def test_a_method_file_is_an_error_of_the_plan(cai: Cai, tmp_path: Path, tiny_model: Path, text: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    file = tmp_path / "x.yaml"
    file.write_text(f"name: x\nmodels: {{base: {tiny_model}}}\nmethods: [mine.py]\narms: [sl_cai, mine]\n")
    for command in ("plan", "run"):
        code, _, said = cai(command, file, "--out", tmp_path / "run")
        assert code == 2, said
        assert "unexpected" not in said
        assert len(said.splitlines()) == 1
