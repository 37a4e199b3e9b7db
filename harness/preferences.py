"""Preferences in TRL's format or PKU-SafeRLHF's as (prompt, chosen, rejected, p).

TRL: `chosen` and `rejected` are texts or lists of messages; `prompt` stands in a column of its own, or is the beginning
that both share. A soft label `p` is P(chosen is better). PKU-SafeRLHF holds two judgments on one pair of answers: which
is better, for the kind helpful, and which is safer, for the kind harmless.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.errors import UserError, shown
from harness.models import chat
from harness.sources import Row

COLUMNS = ["prompt", "chosen", "rejected", "p"]
PKU_ID = {"helpful": "better_response_id", "harmless": "safer_response_id"}
_ROLES = ("system", "user", "assistant")
_ALIKE, _EMPTY, _LATER = "with two answers alike", "with an empty text", "whose answers differ in more than one turn"


def table(rows: Sequence[Row], kind: str, names: Any, key: str) -> tuple[pd.DataFrame, list[str]]:
    """(`COLUMNS`, notes) of `rows`; names: the experiment's `Pairs`, whose columns are read, which stand under `key`.

    The better answer is the chosen one, so p >= 0.5. Pairs without a difference, or with an empty text, are left out
    and noted. Raises UserError that names file and row, and the key that maps a missing column.
    """
    pku = bool(rows) and names.chosen not in rows[0][1] and "response_0" in rows[0][1]
    found, left_out, systems = [], Counter[str](), 0
    for where, row in rows:
        messages, chosen, rejected = _pku(where, row, kind) if pku else _trl(where, row, names, key)
        if messages is None:
            left_out[_LATER] += 1
            continue
        systems += any(m["role"] == "system" for m in messages)
        prompt, p = _prompt(messages), _soft(where, row, names, key)
        if not prompt or not chosen or not rejected:
            left_out[_EMPTY] += 1
        elif chosen == rejected:
            left_out[_ALIKE] += 1
        elif p < 0.5:
            found.append((prompt, rejected, chosen, 1 - p))
        else:
            found.append((prompt, chosen, rejected, p))
    if not found:
        place = rows[0][0].rsplit(": row", 1)[0] if rows else "the source"
        raise UserError(f"{key}: {place}: no usable preference pair; rows need two different answers to a prompt")
    notes = [f"{kind} labels: left out {number:,} pairs {why}" for why, number in left_out.items()]
    if systems:
        notes.append(f"{kind} labels: {systems:,} system messages stand before the first human turn")
    return pd.DataFrame(found, columns=COLUMNS), notes


def conversation(value: Any, where: str) -> list[dict[str, str]]:
    """A list of messages, checked. Raises UserError that names the row."""
    given = value.tolist() if hasattr(value, "tolist") else value  # Parquet's lists are arrays
    if not isinstance(given, list) or not given:
        raise UserError(f"{where}: {shown(value)} is no list of messages; write [{{role, content}}, ...]")
    messages = []
    for place, message in enumerate(given):
        said: dict[str, Any] = message if isinstance(message, dict) else {}
        role, content = said.get("role"), said.get("content")
        content = content.tolist() if content is not None and hasattr(content, "tolist") else content
        if isinstance(content, list) and all(isinstance(c, dict) and isinstance(c.get("text"), str) for c in content):
            content = "".join(part["text"] for part in content)
        if role not in _ROLES or not isinstance(content, str):
            raise UserError(
                f"{where}: message {place} is {shown(message)}; each needs a role ({', '.join(_ROLES)}) and a content "
                "of text"
            )
        messages.append({"role": role, "content": content.strip()})
    return messages


def prompt_of(value: Any, where: str) -> str:
    """A prompt from a text or messages. Of a whole conversation, which ends with an answer, the first human turn."""
    messages = _parsed(value) if isinstance(value, str) else conversation(value, where)
    if messages and messages[-1]["role"] == "assistant":
        messages = [m for m in messages if m["role"] == "user"][:1]
    return _prompt(messages) if messages else ""


def _parsed(text: str) -> list[dict[str, str]]:
    """The messages of a text, plain or in HH layout."""
    text = text.strip()
    return chat.parse(f"\n\n{text}" if text.startswith("Human:") else text)


def _prompt(messages: Sequence[dict[str, str]]) -> str:
    """Messages that end with the human's turn as a prompt. What a system message says opens the human turn after it."""
    turns: list[dict[str, str]] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{message['content']}".strip()}
        else:
            turns.append({"role": role, "content": message["content"]})
    if not turns or not all(turn["content"] for turn in turns):
        return ""
    return turns[0]["content"] if len(turns) == 1 else f"{chat.to_hh(turns)}\n\nAssistant:"


def _trl(where: str, row: dict[str, Any], names: Any, key: str) -> tuple[list[dict[str, str]] | None, str, str]:
    """(messages of the prompt, chosen, rejected); without messages where the answers differ before their last turn."""
    for role in ("chosen", "rejected"):
        column = getattr(names, role)
        if row.get(column) is None:
            raise UserError(f"{where} has nothing under {column!r}; name the column that holds it: {key}.{role}")
    if names.prompt is not None and row.get(names.prompt) is None:
        raise UserError(f"{where} has nothing under {names.prompt!r}; name the column that holds it: {key}.prompt")
    given = row.get(names.prompt or "prompt")
    answers = [row[names.chosen], row[names.rejected]]
    if all(isinstance(answer, str) for answer in answers):
        if given is None:
            return _implicit(where, answers[0], answers[1], key)
        return _asked(given, where), answers[0].strip(), answers[1].strip()
    if any(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where}: one answer is a text and the other messages; write both in the same way")
    turns = [conversation(answer, f"{where}: {getattr(names, role)}")
             for answer, role in zip(answers, ("chosen", "rejected"), strict=True)]  # fmt: skip
    if given is None or all(conv[0]["role"] != "assistant" for conv in turns):  # both begin with their prompt
        shared = next((i for i, (a, b) in enumerate(zip(*turns, strict=False)) if a != b), min(map(len, turns)) - 1)
        prompt, rests = turns[0][:shared], [conv[shared:] for conv in turns]
    else:
        prompt, rests = _asked(given, where), turns
    if any(len(rest) != 1 or rest[0]["role"] != "assistant" for rest in rests):
        return None, "", ""
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: no human turn stands before the answers; name the prompt's column: {key}.prompt")
    return prompt, rests[0][0]["content"], rests[1][0]["content"]


def _asked(given: Any, where: str) -> list[dict[str, str]]:
    """The prompt that stands in a column of its own."""
    messages = _parsed(given) if isinstance(given, str) else conversation(given, f"{where}: prompt")
    if messages and messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt ends with an assistant's turn; it must end with the human's")
    return messages


def _implicit(where: str, chosen: str, rejected: str, key: str) -> tuple[list[dict[str, str]] | None, str, str]:
    """Two texts that begin with their prompt: transcripts in HH layout, or else their common words."""
    texts = [f"\n\n{text.lstrip()}" for text in (chosen, rejected)]
    if all(text.startswith("\n\nHuman:") for text in texts):
        try:
            (prompt, better), (other, worse) = map(chat.split_transcript, texts)
        except ValueError:
            return None, "", ""  # ends with a human turn
        return (chat.parse(prompt), better, worse) if prompt == other else (None, "", "")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    while n and not chosen[n - 1].isspace():  # not within a word
        n -= 1
    if not chosen[:n].strip():
        raise UserError(
            f"{where}: the answers share no beginning that would be a prompt; name its column: {key}.prompt"
        )
    return [{"role": "user", "content": chosen[:n].strip()}], chosen[n:].strip(), rejected[n:].strip()


def _pku(where: str, row: dict[str, Any], kind: str) -> tuple[list[dict[str, str]], str, str]:
    better: Any = row.get(PKU_ID[kind])
    if isinstance(better, bool) or str(better) not in ("0", "1"):
        raise UserError(f"{where}: {PKU_ID[kind]} is {shown(better)}; it must be 0 or 1, the number of a response")
    texts = [row.get(column) for column in ("prompt", "response_0", "response_1")]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} needs texts under 'prompt', 'response_0' and 'response_1'; write them")
    prompt, *answers = (str(text).strip() for text in texts)
    return chat.parse(prompt), answers[int(better)], answers[1 - int(better)]


def _soft(where: str, row: dict[str, Any], names: Any, key: str) -> float:
    """P(chosen is better): the soft label where there is one, else 1."""
    column = names.p or "p"
    if column not in row:
        if names.p is not None:
            raise UserError(f"{where} has nothing under {column!r}; name the column that holds it: {key}.p")
        return 1.0
    try:
        p = math.nan if isinstance(row[column], bool) else float(row[column])
    except (TypeError, ValueError):
        p = math.nan
    if not 0 <= p <= 1:
        raise UserError(f"{where}: {column} is {shown(row[column])}; a soft label is a number from 0 to 1")
    return p
