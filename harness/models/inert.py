"""Text is data: a control token or a turn marker that stands in it is read as ordinary text and never obeyed.

Control tokens in data are marked, and encoded by the tokenizer as the characters that they consist of. Markers that
are themselves plain text (``Human:``, ``[INST]``) cannot be told apart by a tokenizer: a space goes into those.
"""

from __future__ import annotations

import re
from typing import Any

from harness.errors import UserError

# Where the tokenizer is unknown (a server), or only text can be given: what families write as control tokens.
_KNOWN = re.compile(
    r"<\|[^|<>\s]{1,60}\|>|<\uff5c[^<>\s]{1,60}\uff5c>|</?(?:s|bos|eos|pad|unk|mask|sep|cls|think)>"
    r"|<(?:start|end)_of_turn>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches every token that `tokenizer` gives a meaning beyond its text: special ones, and those of its template."""
    cached = getattr(tokenizer, "_cai_control_tokens", None)
    key = (tokenizer.chat_template, len(tokenizer))
    if cached is None or cached[0] != key:
        template = tokenizer.chat_template or ""
        found = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (token.content in template and not token.content.isspace())
        ]
        longest_first = sorted(found, key=len, reverse=True)
        cached = (key, re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))
        tokenizer._cai_control_tokens = cached
    return cached[1]


def mark(tokenizer: Any, text: str) -> str:
    """`text` with its control tokens marked as data, for `encode`."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    return str(mark_control_tokens(text, control_tokens(tokenizer)))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`, without BOS: control tokens that `mark` has marked as their characters, others as such.

    Raises UserError where the tokenizer cannot spell a control token in characters.
    """
    from transformers.utils import chat_template_utils

    if chat_template_utils._CONTROL_TOKEN_START not in text:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    try:
        return list(chat_template_utils.encode_marked_chat(tokenizer, text))
    except ValueError as error:
        raise UserError(f"{tokenizer.name_or_path}: {error}; delete it from the data") from error


def break_up(text: str, markers: re.Pattern[str] = _KNOWN) -> str:
    """`text` with a space before the last character of each of `markers`, which is then none: ``<|im_end| >``."""
    return markers.sub(lambda found: f"{found[0][:-1]} {found[0][-1]}", text)
