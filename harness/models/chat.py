"""How a conversation becomes tokens: the one place where text is formatted, for policies and PMs alike.

A prompt is plain text for one turn, or HH layout (``\\n\\nHuman: ... \\n\\nAssistant:``) for several.
Tokenizers with a chat template use it; the others get the paper's ``Human:`` / ``Assistant:`` turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.errors import UserError
from harness.models import inert

Message = dict[str, str]
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_CHAIN_TURN = re.compile(r"\n\n(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision):[ ]?")
_ROLES = {"Human": "user", "CritiqueRequest": "user", "RevisionRequest": "user"}
_FORGED_TURN = re.compile(r"\n\n(?:Human|Assistant):")
_TURN_LIKE = re.compile(r"(?<=\n)[ \t]*(?:Human|Assistant):")
# Llama 3 and its like write today's date into every prompt; ours are the same today and tomorrow.
_FIXED_DATE = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro %}"


def parse(text: str, *, chain: bool = False) -> list[Message]:
    """Messages of a prompt or transcript; with `chain`, critique and revision turns count as turns too.

    An empty last assistant turn (the place of the answer) is left out.
    """
    if not text.startswith("\n\nHuman:"):
        return [{"role": "user", "content": text.strip()}]
    parts = (_CHAIN_TURN if chain else _TURN).split(text)[1:]
    messages = [
        {"role": _ROLES.get(speaker, "assistant"), "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    while messages and not messages[-1]["content"]:
        messages.pop()
    return messages


def messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as messages, whether it is text or messages already."""
    return parse(prompt) if isinstance(prompt, str) else list(prompt)


def normalise(prompt: str) -> str:
    """Plain text for a single human turn, HH layout ending in ``\\n\\nAssistant:`` otherwise."""
    messages = parse(prompt)
    if len(messages) == 1:
        return messages[0]["content"]
    return to_hh(messages) + "\n\nAssistant:"


def to_hh(messages: Sequence[Message]) -> str:
    """Messages in HH layout, without an opening for the next turn."""
    return "".join(
        f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {inert.break_up(m['content'], _FORGED_TURN)}"
        for m in messages
    )


def split_transcript(transcript: str) -> tuple[str, str]:
    """(prompt, last assistant response) of an HH transcript. Raises ValueError when it ends otherwise."""
    messages = parse(transcript)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("a transcript must end with an assistant turn")
    return normalise(to_hh(messages[:-1])), messages[-1]["content"]


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Text up to the place where the assistant's next answer begins, for trainers that take text and add BOS.

    Control tokens in the messages are broken up; everything else encodes messages by `encode_messages`.
    """
    merged = _merged(messages)
    contents = [_plain(tokenizer, inert.break_up(m["content"], inert.control_tokens(tokenizer))) for m in merged]
    text = _join(_pieces(tokenizer, tuple(m["role"] for m in merged), answer=True), contents)
    return text.removeprefix(tokenizer.bos_token) if bos_ids(tokenizer) else text


def encode_messages(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids up to the place of the assistant's next answer, with BOS where the tokenizer's texts begin with one.

    What the messages say is data: no token of theirs is a control token. Contents are stripped, as templates do.
    """
    merged = _merged(messages)
    pieces = _pieces(tokenizer, tuple(m["role"] for m in merged), answer=True)
    ids = inert.encode(tokenizer, _join(pieces, [_data(tokenizer, m["content"]) for m in merged]))
    return ids if tokenizer.chat_template is not None else [*bos_ids(tokenizer), *ids]


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, ready for the assistant's answer."""
    return encode_messages(tokenizer, parse(prompt))


def encode_response(tokenizer: Any, response: str, *, ended: bool = True) -> list[int]:
    """Token ids of an answer, and its end of turn unless it was cut at the length limit (`ended=False`)."""
    head, space = _opening(tokenizer)
    after = _pieces(tokenizer, ("user", "assistant"), answer=False)[2]
    closing = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    trail = after[: after.index(closing)] if ended and closing in after else ""
    ids = _continued(tokenizer, head, space + _data(tokenizer, response) + trail) if response else []
    return [*ids, end_of_turn_id(tokenizer)] if ended else ids


def encode_dialogue(
    tokenizer: Any, prompt: str, response: str, max_length: int | None = None, *, ended: bool = True
) -> list[int]:
    """Token ids of prompt, response and, where it `ended`, its end of turn: what a PM reads, everywhere.

    Longer than `max_length`, the prompt loses its beginning, then the response its last tokens; the end of
    turn, where the PM's score is read, always stays.
    """
    context, answer = encode_prompt(tokenizer, prompt), encode_response(tokenizer, response, ended=ended)
    if max_length is None or len(context) + len(answer) <= max_length:
        return context + answer
    if len(answer) >= max_length:
        return [*answer[: max_length - 1], answer[-1]] if ended else answer[:max_length]
    return context[-(max_length - len(answer)) :] + answer


def encode_next_turn(tokenizer: Any, request: str) -> list[int]:
    """Token ids from the end of an assistant's answer to the place of its next one, `request` between them.

    With a chat template the first id is the end of turn, so the caller must not have fed it already. Without one the
    turns are parts of one document, so there is no EOS between them.
    """
    pieces = _pieces(tokenizer, ("user", "assistant", "user"), answer=True)
    if tokenizer.chat_template is None:
        return _continued(tokenizer, ".", pieces[2] + _data(tokenizer, request) + pieces[3])
    closing = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    before = pieces[2][max(0, pieces[2].find(closing)) :]
    return inert.encode(tokenizer, before + _data(tokenizer, request) + pieces[3])


def encode_choices(
    tokenizer: Any, lead: str, choices: Sequence[str], *, reasoned: bool = False
) -> tuple[list[int], list[list[int]]]:
    """(ids of `lead`, ids of each choice after it) where an answer begins with `lead` and goes on with a choice.

    `reasoned`: `lead` follows a reasoning in the same answer. Lead and choice are tokenised as one text, as in
    training; a token that reaches over the boundary counts as the choice's. Raises UserError for an empty choice, and
    for one that begins another's tokens.
    """
    head, space = (".", "") if reasoned else _opening(tokenizer)
    whole = [_continued(tokenizer, head, space + _data(tokenizer, lead + choice)) for choice in choices]
    begun = _continued(tokenizer, head, space + _data(tokenizer, lead)) if lead else []
    shared = next((i for i, ids in enumerate(zip(begun, *whole, strict=False)) if len(set(ids)) > 1), None)
    n = min(len(begun), *map(len, whole)) if shared is None else shared
    options = [ids[n:] for ids in whole]
    if not all(choices) or not all(options):
        raise UserError(f"choices {list(choices)}: an empty choice has no log-probability; name each one")
    return begun[:n], options


def encode_opening(tokenizer: Any, opening: str) -> list[int]:
    """Token ids of the beginning `opening` of the assistant's answer."""
    head, space = _opening(tokenizer)
    return _continued(tokenizer, head, space + _data(tokenizer, opening)) if opening else []


def end_of_turn_id(tokenizer: Any) -> int:
    """The token that closes an assistant's turn: the first control token that the template writes after it, or EOS."""
    if tokenizer.chat_template is not None:
        after = _pieces(tokenizer, ("user", "assistant"), answer=False)[2]
        found = inert.control_tokens(tokenizer).search(after)
        if found is not None:
            return int(tokenizer.convert_tokens_to_ids(found[0]))
    return int(tokenizer.eos_token_id)


def stop_ids(tokenizer: Any) -> set[int]:
    """Tokens at which generation stops."""
    return {end_of_turn_id(tokenizer), int(tokenizer.eos_token_id)}


# ---------------------------------------------------------------- the layout of a conversation


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Stripped messages; neighbours of one role, which some templates refuse, are one turn."""
    merged: list[Message] = []
    for message in messages:
        content = message["content"].strip()
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = {"role": message["role"], "content": f"{merged[-1]['content']}\n\n{content}"}
        else:
            merged.append({"role": message["role"], "content": content})
    return merged


def _pieces(tokenizer: Any, roles: tuple[str, ...], *, answer: bool) -> tuple[str, ...]:
    """What the template, or HH layout, writes around the contents of messages of `roles`: len(roles) + 1 texts.

    With `answer`, the last one ends where the assistant's answer begins. Raises UserError for a template that refuses
    such a conversation, or writes a content not once.
    """
    if tokenizer.chat_template is None:
        openings = [f"\n\n{'Human' if role == 'user' else 'Assistant'}: " for role in roles]
        return (*openings, "\n\nAssistant:" if answer else "")
    known = tokenizer.__dict__.setdefault("_cai_pieces", {})
    key = (tokenizer.chat_template, roles, answer)
    if key not in known:
        # Marks in place of contents: a template must not see data, which it may strip, split or obey.
        marks = [f"CAI{i}MARK" for i in range(len(roles))]
        conversation = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = str(
                tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=answer, **template_arguments(tokenizer)
                )
            )
        except Exception as error:  # a template raises what it likes
            raise UserError(
                f"{tokenizer.name_or_path}: its chat template refuses turns of {', '.join(roles)} ({error}); "
                "use a model with another template"
            ) from error
        found = re.split("|".join(marks), text)
        if re.findall(r"CAI\d+MARK", text) != marks:
            raise UserError(f"{tokenizer.name_or_path}: its chat template does not write each message once, in order")
        known[key] = tuple(found)
    return known[key]


def template_arguments(tokenizer: Any) -> dict[str, Any]:
    """What the harness tells a chat template: to answer at once (Qwen 3 and its like), and a date that stays."""
    template = tokenizer.chat_template
    dated = {"chat_template": _FIXED_DATE + template} if "strftime_now" in template else {}
    return {"enable_thinking": False} | dated


def _opening(tokenizer: Any) -> tuple[str, str]:
    """(text that opens the assistant's turn, what stands between it and the answer)."""
    head = _pieces(tokenizer, ("user",), answer=True)[1]
    before = _pieces(tokenizer, ("user", "assistant"), answer=False)[1]
    return head, before.removeprefix(head) if before.startswith(head) else ""


def _plain(tokenizer: Any, text: str) -> str:
    """`text` with the turn markers broken up that are plain text in this tokenizer's layout."""
    if tokenizer.chat_template is None:
        return inert.break_up(text, _TURN_LIKE)
    known = tokenizer.__dict__.setdefault("_cai_plain_markers", {})
    if tokenizer.chat_template not in known:
        pieces = _pieces(tokenizer, ("user", "assistant", "user"), answer=True)
        control = inert.control_tokens(tokenizer)
        between = [control.split(piece) for piece in pieces]
        brackets = {found for parts in between for part in parts for found in re.findall(r"[\[<]\S*[\]>]", part)}
        names = {found for parts in between[:-1] for found in re.findall(r"(\S+:)\s*$", parts[-1])}
        known[tokenizer.chat_template] = re.compile(
            "|".join([*map(re.escape, sorted(brackets)), *(rf"(?<!\S){re.escape(name)}" for name in sorted(names))])
            or "(?!)"
        )
    return inert.break_up(text, known[tokenizer.chat_template])


def _data(tokenizer: Any, text: str) -> str:
    """`text` as `inert.encode` takes it: nothing in it is a control token or a turn marker."""
    return inert.mark(tokenizer, _plain(tokenizer, text))


def _join(pieces: Sequence[str], contents: Sequence[str]) -> str:
    return pieces[0] + "".join(content + piece for content, piece in zip(contents, pieces[1:], strict=True))


def _continued(tokenizer: Any, head: str, text: str) -> list[int]:
    """Token ids of `text` where it follows `head`: by itself, some tokenizers would put a space before it."""
    before, both = inert.encode(tokenizer, head), inert.encode(tokenizer, head + text)
    return both[len(before) :] if both[: len(before)] == before else inert.encode(tokenizer, text)


def bos_ids(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer begins its texts with it, else []."""
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and begins else []


def clean(text: str) -> str:
    """A sampled answer without a next human turn that the model wrote itself."""
    return re.split(r"\n\n?Human:", text)[0].strip()
