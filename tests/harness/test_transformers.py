"""Sampling and scoring against plain unbatched forwards of the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.draws import uniforms
from harness.errors import UserError
from harness.models import chat, checkpoints
from harness.models import transformers as generation
from harness.models.base import begun_human_turn, logprobs, sample_of
from harness.models.transformers import Generator

PROMPTS = [
    "Why is the sky blue?",
    "Tea?",
    "Write four lines about the sea and the wind that blows over it.",
    "hello there",
]


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator(*checkpoints.load_policy(tiny_model), batch_size=3)


def logprobs_of(model: object, ids: list[int], continuation: list[int]) -> float:
    logits = model(torch.tensor([ids + continuation])).logits[0].detach().double()
    logp = torch.log_softmax(logits, -1)
    return sum(float(logp[len(ids) - 1 + t, token]) for t, token in enumerate(continuation))


def test_pad_is_not_the_end_of_turn(generator: Generator) -> None:
    assert generator.tokenizer.pad_token_id not in chat.stop_ids(generator.tokenizer)


def test_a_sample_does_not_depend_on_its_batch(generator: Generator) -> None:
    keys = list("abcd")
    together = generator.sample(PROMPTS, max_new_tokens=12, seed=3, keys=keys)
    alone = [generator.sample([p], max_new_tokens=12, seed=3, keys=[k])[0] for p, k in zip(PROMPTS, keys, strict=True)]
    assert together == alone
    assert together != generator.sample(PROMPTS, max_new_tokens=12, seed=4, keys=keys)


def test_a_sample_tells_whether_it_ended(generator: Generator) -> None:
    """`ended` is that of plain ids: a stop token, or a human turn that the model wrote itself; the rest was cut."""
    tokenizer, end = generator.tokenizer, chat.end_of_turn_id(generator.tokenizer)
    words = tokenizer("Tea.", add_special_tokens=False)["input_ids"]
    more = tokenizer("\n\nHuman: And", add_special_tokens=False)["input_ids"]
    cases = {(*words, end): True, tuple(words): False, (*words, *more): True, (end,): True}
    for ids, ended in cases.items():
        sample = sample_of(tokenizer, ids)
        assert (sample.text, sample.ended, sample.ids) == ("Tea." if words[0] in ids else "", ended, ids)
    for sample in generator.sample(PROMPTS, max_new_tokens=12, seed=3):
        assert sample.ended == (sample.ids[-1] in chat.stop_ids(tokenizer))
        assert sample.ended or len(sample.ids) == 12


def test_greedy_sampling_is_the_argmax_of_plain_forwards(generator: Generator) -> None:
    tokenizer = generator.tokenizer
    ids = chat.encode_prompt(tokenizer, PROMPTS[0])
    row = generation.decode(
        generator.model,
        [ids, chat.encode_prompt(tokenizer, PROMPTS[2])],
        max_new_tokens=6,
        temperature=0,
        keys=["a", "b"],
        seed=0,
        eos_ids=set(),
        pad_id=tokenizer.pad_token_id,
    )[0]
    expected: list[int] = []
    for _ in range(6):
        expected.append(int(generator.model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
    assert row == expected


def test_sampling_stops_at_the_end_of_turn_and_keeps_it(generator: Generator) -> None:
    tokenizer = generator.tokenizer
    everything = set(range(len(tokenizer)))
    rows = generation.decode(
        generator.model,
        [chat.encode_prompt(tokenizer, p) for p in PROMPTS],
        max_new_tokens=9,
        temperature=1.0,
        keys=PROMPTS,
        seed=0,
        eos_ids=everything,
        pad_id=tokenizer.pad_token_id,
    )
    assert [len(row) for row in rows] == [1] * len(PROMPTS)


def test_sampled_frequencies_follow_the_model() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(20_000, 1)
    draws = np.random.default_rng(0).random(20_000)
    counts = torch.bincount(generation.pick(logits, draws, 1.0), minlength=3) / 20_000
    assert torch.allclose(counts.float(), torch.tensor([0.5, 0.3, 0.2]), atol=0.015)


@pytest.mark.parametrize("choices", [["a", "b"], [" yes", " certainly not", "b"]])
def test_choice_logprobs_equal_plain_forwards(generator: Generator, choices: list[str]) -> None:
    got = logprobs(generator, PROMPTS, choices)
    for i, prompt in enumerate(PROMPTS):
        ids = chat.encode_prompt(generator.tokenizer, prompt)
        for j, choice in enumerate(choices):
            option = generator.tokenizer(choice, add_special_tokens=False)["input_ids"]
            assert got[i, j] == pytest.approx(logprobs_of(generator.model, ids, option), abs=1e-4)


def test_a_reasoning_begins_with_its_opening(generator: Generator) -> None:
    """Reasoning and choice are those of plain forwards over the prompt, the opening, the reasoning and the lead."""
    (choice,) = generator.choose(
        PROMPTS[:1], ["A", "B"], lead="\nSo: (", keys=["k"], seed=2, think=5, opening="Let me see:"
    )
    tokenizer = generator.tokenizer
    ids = chat.encode_prompt(tokenizer, PROMPTS[0]) + chat.encode_opening(tokenizer, "Let me see:")
    (said,) = generation.decode(
        generator.model,
        [ids],
        max_new_tokens=5,
        temperature=1.0,
        keys=["k"],
        seed=2,
        eos_ids=chat.stop_ids(tokenizer),
        pad_id=tokenizer.pad_token_id,
    )
    assert choice.reasoning is not None
    assert tuple(choice.reasoning.ids) == tuple(said)
    begun, options = chat.encode_choices(tokenizer, "\nSo: (", ["A", "B"], reasoned=True)
    for logprob, option in zip(choice.logprobs, options, strict=True):
        assert logprob == pytest.approx(logprobs_of(generator.model, ids + said + begun, option), abs=1e-4)


def test_a_shared_prefix_changes_no_result_and_is_read_once(generator: Generator) -> None:
    long = "Two answers to one question are below, and one of them is better than the other. " * 3
    pairs = [f"{q} {long} (A) {a} (B) {b}" for q in ("One:", "Two, and longer:") for a, b in (("x", "yy"), ("yy", "x"))]
    generator.tokens = 0
    together = logprobs(generator, pairs, ["A", "B"])
    read = generator.tokens
    alone = np.concatenate([logprobs(generator, [p], ["A", "B"]) for p in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert read < 0.6 * sum(len(chat.encode_prompt(generator.tokenizer, p)) for p in pairs)


def test_a_second_turn_reads_the_same_as_the_whole_conversation(generator: Generator) -> None:
    """The KV cache kept over turns gives the logits of a fresh forward, for rows that ended and rows that were cut."""
    tokenizer, model = generator.tokenizer, generator.model
    contexts = [chat.encode_prompt(tokenizer, p) for p in PROMPTS]
    session = generator.session()
    first = session.extend(contexts)[:, -1]
    draws = np.stack([uniforms(1, p, 7) for p in PROMPTS])
    stop = set(range(0, len(tokenizer), 3))  # ends some rows early
    answers = session.sample(first, draws, temperature=1.0, stop=stop)
    assert len({len(a) for a in answers}) > 1
    follow = chat.encode_next_turn(tokenizer, "Say it in other words.")
    logits = session.extend([follow] * len(PROMPTS))[:, -1]
    for row, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        said = answer[:-1] if answer[-1] in stop else answer
        whole = model(torch.tensor([context + said + follow])).logits[0, -1]
        torch.testing.assert_close(logits[row], whole, atol=1e-4, rtol=1e-4)


def test_a_human_turn_that_a_model_began_is_no_part_of_the_next_context(generator: Generator) -> None:
    """Without a chat template a model may write "\n\nHuman:" itself; what it fed of that is forgotten."""
    tokenizer, model = generator.tokenizer, generator.model
    contexts = [chat.encode_prompt(tokenizer, p) for p in PROMPTS]
    session = generator.session()
    draws = np.stack([uniforms(1, p, 9) for p in PROMPTS])

    def ended(ids: list[int]) -> int:
        return min(3, len(ids)) if ids[-1] % 4 == 0 else 0

    answers = session.sample(session.extend(contexts)[:, -1], draws, temperature=1.0, stop=set(), ended=ended)
    cut = [ended(answer) for answer in answers]
    assert max(cut) == 3
    follow = chat.encode_next_turn(tokenizer, "Say it in other words.")
    logits = session.extend([follow] * len(PROMPTS))[:, -1]
    for row, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        whole = model(torch.tensor([context + answer[: len(answer) - cut[row]] + follow])).logits[0, -1]
        torch.testing.assert_close(logits[row], whole, atol=1e-4, rtol=1e-4)


def test_where_a_human_turn_begins(tiny_model: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(tiny_model)
    own = tokenizer("Yes, it is.", add_special_tokens=False)["input_ids"]
    marker = tokenizer("\n\nHuman:", add_special_tokens=False)["input_ids"]
    assert begun_human_turn(tokenizer, own) == begun_human_turn(tokenizer, own + marker[:-1]) == 0
    assert begun_human_turn(tokenizer, own + marker) == len(marker)


def test_an_empty_choice_is_an_error(generator: Generator) -> None:
    with pytest.raises(UserError, match="empty choice"):
        logprobs(generator, ["x"], ["A", ""])


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=1, max_size=8))
def test_groups_cover_every_row_once_in_order(rows: list[list[int]]) -> None:
    groups = generation.group_by_prefix(rows)
    assert [i for group in groups for i in group] == list(range(len(rows)))


@given(st.integers(0, 2**31), st.text(max_size=8), st.integers(1, 20))
def test_streams_are_repeatable_and_prefix_stable(seed: int, key: str, n: int) -> None:
    np.testing.assert_array_equal(uniforms(seed, key, n), uniforms(seed, key, n + 5)[:n])
