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
        bars.stage("[bold]arm[/INST]", 1, 2)
        bars.advance(1, 2, "[/x]")
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
