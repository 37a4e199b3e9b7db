"""Text that is not ours, where it leaves: terminal, Markdown, CSV; and what must never leave, keys and passwords."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness import text
from tests import hostile

ANY = st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Po", "Lu"]))


@given(ANY | st.sampled_from(hostile.TEXTS))
def test_nothing_controls_a_terminal(value: str) -> None:
    shown = text.terminal(value)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff")
    shown.encode("utf-8")
    ElementTree.fromstring(f"<a><![CDATA[{shown.replace(']]>', '')}]]></a>")  # JUnit files hold it
    assert "\n" not in text.line(value)
    assert "\t" not in text.line(value)


def test_plain_text_stays_as_it_is() -> None:
    for value in ("plain", "naïve", "日本語", "مرحبا", "👩‍👩‍👧", "a\nb\tc", "[/INST]", "100 % of $5"):
        assert text.terminal(value) == value
    assert text.terminal("\x1b[31m") == r"\x1b[31m"
    assert text.line("a\nb") == r"a\nb"


@pytest.mark.parametrize("cell", hostile.FORMULAS)
def test_no_cell_is_a_formula(cell: str) -> None:
    assert text.csv_cell(cell).startswith("'")
    assert text.from_csv_cell(text.csv_cell(cell)) == cell


@given(ANY | st.sampled_from(hostile.TEXTS))
def test_a_cell_is_read_back(cell: str) -> None:
    assert not text.csv_cell(cell).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert text.from_csv_cell(text.csv_cell(cell)) == cell


def test_a_csv_file_keeps_numbers_and_names_columns_safely() -> None:
    table = pd.DataFrame({"arm": ["=a()", "b"], "x": [-1.5, 2.0], "+y": pd.array([-1, None], dtype="Int64")})
    rows = list(csv.reader(io.StringIO(text.csv(table))))
    assert rows == [["arm", "x", "'+y"], ["'=a()", "-1.5", "-1"], ["b", "2.0", ""]]
    assert table["arm"].tolist() == ["=a()", "b"]
    mixed = pd.DataFrame({"a": pd.Categorical(["=x", "y"]), "b": [-1, "@z"]})
    assert text.csv(mixed) == "a,b\r\n'=x,-1\r\ny,'@z\r\n"


@given(ANY | st.sampled_from(hostile.TEXTS))
def test_markdown_shows_text_as_it_is_on_one_line(value: str) -> None:
    shown = text.markdown(value)
    assert "\n" not in shown
    assert not re.search(r":[\w+/-]+:", shown.replace("\\", ""))
    assert not re.search(r":\w+\[", shown)  # a directive of Streamlit's
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    plain = " ".join(text.terminal(value).split())
    for before in ("", "- ", "**", "a "):
        tokens = [part for token in reader.parse(before + shown) for part in [token, *(token.children or ())]]
        kinds = {token.type for token in tokens} - {"inline", "text", "text_special"}
        assert kinds <= {"paragraph_open", "paragraph_close", "bullet_list_open", "bullet_list_close",
                         "list_item_open", "list_item_close"}  # fmt: skip
        said = "".join(token.content for token in tokens if token.type.startswith("text"))
        assert said.replace("\u2060", "") == (before.removeprefix("- ") + plain.replace("\u2060", "")).strip()
    cells = [
        token.content for token in reader.parse(f"| a | b |\n|---|---|\n| {shown} | x |") if token.type == "inline"
    ]
    assert len(cells) == 4
    assert text.markdown("rl_cai is 3 - 2 (as in a:b)") == "rl_cai is 3 - 2 (as in a:b)"


SECRETS = [
    ("bad key Bearer sk-abcdef1234567890 given", "sk-abcdef1234567890"),
    ("Authorization: bearer abc.def-ghi", "abc.def-ghi"),
    ("incorrect API key provided: sk-proj-AbC_123-xyz9876.", "sk-proj-AbC_123-xyz9876"),
    ("http://user:hunter2@host/v1 is down", "hunter2"),
    ("https://user:p@ss:w0rd@host:80/v1#M", "p@ss:w0rd"),
    ("https://token@host/v1", "token@"),
    ("GET http://h/v1?api_key=hunter2&x=1", "hunter2"),
    ('{"api_key": "hunter2", "model": "m"}', "hunter2"),
    ("hf_abcdefghijklmnopqrst is no token", "hf_abcdefghijklmnopqrst"),
]


@pytest.mark.parametrize(("message", "secret"), SECRETS)
def test_keys_and_passwords_are_left_out(message: str, secret: str) -> None:
    assert secret in message
    shown = text.redact(message)
    assert secret not in shown
    assert "***" in shown
    assert text.redact(shown) == shown


def test_the_users_own_key_is_left_out_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "plain-word-key")
    assert text.redact("you sent plain-word-key, which is wrong") == "you sent ***, which is wrong"
    monkeypatch.setenv("CAI_API_KEY", "a")  # too short to be a key: every "a" would go
    assert text.redact("a banana") == "a banana"


@pytest.mark.parametrize(
    "message",
    ["http://localhost:8000/v1#org/model", "mail a@b.example", "risk-averse", "a bearer of news", "http://h/?page=2"],
)
def test_what_is_no_secret_stays(message: str) -> None:
    assert text.redact(message) == message


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("http://localhost:8000/v1#m", False),
        ("server:http://u:p@h/v1#m", True),
        ("https://u@h/v1", True),
        ("http://h/v1?key=x", True),
        ("org/model", False),
        ("a@b", False),
    ],
)
def test_credentials_in_an_address(address: str, holds: bool) -> None:
    assert text.holds_credentials(address) is holds
