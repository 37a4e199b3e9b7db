r"""Text that is not ours (responses, arm names, paths, a server's words) made safe for the place where it is shown.

`terminal` for terminals and XML, `line` for messages, `markdown` for Markdown and Streamlit, `csv` for downloads that
may end in a spreadsheet; `redact` takes out keys and passwords. HTML is escaped by Jinja and `html.escape`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Controls (but for line feed and tab), line separators, overrides of direction, halves of characters, no characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
# What Markdown, GitHub and Streamlit read as more than a character; rl_cai keeps its underscore.
_MARKDOWN = re.compile(r"[\\`*\[\]<>#|~$&]|(?<![^\W_])_|_(?![^\W_])|^(?:[-+=]|\d+(?=[.)]))")
_SHORTCODE = re.compile(r":(?=[\w+/-]+:)")  # :smile:, Streamlit's :material/delete:; no backslash helps against them
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what begins a formula in some spreadsheet

_KEYS = ("CAI_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_USER = re.compile(r"([a-z][a-z0-9+.-]*://)([^\s/\"'<>]*@)", re.IGNORECASE)
_NAMED = r"api[-_]?key|access[-_]?token|token|secret|password|passwd|key"
_QUERY = re.compile(rf"([?&](?:{_NAMED})=)[^&\s#\"']+", re.IGNORECASE)
_SECRETS = (
    (_USER, r"\1***@"),
    (_QUERY, r"\1***"),
    (re.compile(rf"([\"'](?:{_NAMED}|authorization)[\"']\s*:\s*[\"'])[^\"']+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(authorization:\s*(?:\w+\s+)?)(?!\w+\s+\*|\*)\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(Bearer\s+)(?=\S*[\d_.-])(?!\*)\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(?:[spr]k-(?=[\w-]*\d)[\w-]{8,}|hf_\w{16,}|gh[a-z]_\w{16,})"), "***"),
)


def terminal(value: object) -> str:
    r"""`value` as text that moves no cursor and changes no colour: controls as \x1b; line feeds and tabs stay."""
    return _CONTROL.sub(_escaped, str(value))


def line(value: object) -> str:
    r"""As `terminal`, on one line: line feeds and tabs as \n and \t."""
    return terminal(value).replace("\n", r"\n").replace("\t", r"\t")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def markdown(value: object) -> str:
    """`value` on one line, shown by Markdown and Streamlit as it is: no emphasis, links, images, icons or HTML.

    A colon that would begin an icon's or emoji's name gets an invisible word joiner after it.
    """
    shown = _SHORTCODE.sub(":\u2060", " ".join(terminal(value).split()))
    return _MARKDOWN.sub(lambda found: f"{found[0]}\\" if found[0].isdecimal() else f"\\{found[0]}", shown)


def csv(table: pd.DataFrame) -> str:
    """`table` as CSV text in which no cell is a formula to a spreadsheet."""
    # Ended as RFC 4180 has it: with "\n" Python would not quote a cell that holds "\r".
    return str(cells(table).to_csv(index=False, lineterminator="\r\n"))


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with its texts, and the names of its columns, as `csv_cell` has them."""
    safe = table.rename(columns=csv_cell)
    for place, kind in enumerate(safe.dtypes):
        if kind.kind not in "biufcmM":
            column = safe.iloc[:, place].astype(object)
            safe = safe.assign(**{safe.columns[place]: column.map(lambda v: csv_cell(v) if isinstance(v, str) else v)})
    return safe


def csv_cell(value: Any) -> str:
    """`value` as a cell; what a spreadsheet would take for a formula gets an apostrophe before it."""
    cell = str(value)
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA) else cell


def from_csv_cell(cell: str) -> str:
    """What `csv_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def redact(value: object) -> str:
    """`value` without passwords in addresses, API keys and the keys of this environment, *** in their place."""
    shown = str(value)
    for name in _KEYS:
        key = os.environ.get(name, "").strip()
        if len(key) >= 6:
            shown = shown.replace(key, "***")
    for pattern, instead in _SECRETS:
        shown = pattern.sub(instead, shown)
    return shown


def holds_credentials(address: str) -> bool:
    """Whether an address has a user, a password or a key in it."""
    return bool(_USER.search(address) or _QUERY.search(address))
