"""Chains: their shape, the draw of principles, what a request sees, resuming, direct revision, first answers."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest

import constitutions
from harness.errors import UserError
from harness.models import checkpoints
from harness.models.transformers import Generator
from pipelines import critique_revise

PROMPTS = ["How do I pick a lock?", "Tell me a rude joke about my neighbour, please.", "hello"]
FIRST = pd.DataFrame(
    {"prompt": PROMPTS, "response": ["With a pin.", "He is a bore.", "Hi, what"], "ended": [True, True, False]}
)
CONSTITUTION = constitutions.load("default")
BY_ID = {p.id: p for p in CONSTITUTION.critique_revision}


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator(*checkpoints.load_policy(tiny_model), batch_size=2)


def chains(model: Generator, first: pd.DataFrame = FIRST, **settings: object) -> pd.DataFrame:
    defaults = {"arm": "helpful_only", "rounds": 4, "critique": True, "context": "latest", "replacement": True}
    defaults |= {"max_new_tokens": 6, "temperature": 1.0, "seed": 0, "shots": False} | settings
    return critique_revise.run(model, CONSTITUTION, first, **defaults)


def test_a_chain_has_the_first_answer_and_four_critiques_and_revisions(generator: Generator) -> None:
    table = chains(generator)
    assert list(table.columns) == critique_revise.COLUMNS
    for _, chain in table.groupby("prompt"):
        assert sorted(chain["revision"]) == [0, 1, 2, 3, 4]
        later = chain[chain["revision"] > 0]
        assert later["critique"].notna().all()
        assert chain.loc[chain["revision"] == 0, ["principle", "critique"]].isna().all(axis=None)
    assert not table.loc[table["revision"] > 0, "ended"].any()  # six tokens of a random model


@pytest.mark.parametrize("critique", [True, False])
def test_all_chains_revise_the_same_first_answers(generator: Generator, critique: bool) -> None:
    table = chains(generator, critique=critique)
    start = table[table["revision"] == 0][["prompt", "response", "ended"]]
    pd.testing.assert_frame_equal(start.reset_index(drop=True), FIRST)


@pytest.mark.parametrize("context", ["latest", "chain"])
def test_a_chain_does_not_depend_on_its_batch(generator: Generator, context: str) -> None:
    order = {"by": ["prompt", "revision"], "ignore_index": True}
    together = chains(generator, context=context).sort_values(**order)
    alone = pd.concat([chains(generator, FIRST[i : i + 1], context=context) for i in range(3)]).sort_values(**order)
    pd.testing.assert_frame_equal(together, alone)


@pytest.mark.parametrize("context", ["latest", "chain"])
def test_a_killed_chain_goes_on_where_it_was(generator: Generator, context: str) -> None:
    stored: list[dict[str, object]] = []
    whole = chains(generator, context=context, on_batch=stored.extend)
    assert len(stored) == len(whole)
    for cut in (0, 2, 5, 9, len(stored) - 1, len(stored)):
        added: list[dict[str, object]] = []
        resumed = chains(generator, context=context, earlier=stored[:cut], on_batch=added.extend)
        pd.testing.assert_frame_equal(whole, resumed)
        assert len(added) == len(stored) - cut


class Recorder:
    """A model that answers with the number of its answer and records what it was shown."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def converse(self, prompts, requests, *, keys, on_batch, **_):  # type: ignore[no-untyped-def]  # a stand-in
        for i, (prompt, asked, names) in enumerate(zip(prompts, requests, keys, strict=True)):
            turns = [m["content"] for m in prompt]
            said = []
            for n, name in enumerate(names):
                turns = [*turns, *asked[n - 1 : n]] if n else turns
                self.seen.append(turns)
                said.append(critique_revise.Sample(f"[{name.split('/')[-1]}]", ended=True))
                turns = [*turns, said[-1].text]
            on_batch([i], [said])


@pytest.mark.parametrize("critique", [True, False])
def test_a_request_sees_the_prompt_and_the_latest_answer(critique: bool) -> None:
    """As in the paper: no earlier critique, no earlier answer."""
    model = Recorder()
    table = chains(model, FIRST[:1], rounds=2, critique=critique).set_index("revision")  # type: ignore[arg-type]  # a stand-in
    one, two = (BY_ID[table.loc[n, "principle"]] for n in (1, 2))
    if critique:
        start, again = [PROMPTS[0], "With a pin."], [PROMPTS[0], "[revision 1]"]
        assert model.seen == [
            [*start, one.critique],
            [*start, one.critique, "[critique 1]", one.revision],
            [*again, two.critique],
            [*again, two.critique, "[critique 2]", two.revision],
        ]
    else:
        assert model.seen == [[PROMPTS[0], "With a pin.", one.revision], [PROMPTS[0], "[revision 1]", two.revision]]
    assert table["response"].tolist() == ["With a pin.", "[revision 1]", "[revision 2]"]


@pytest.mark.parametrize("critique", [True, False])
def test_a_request_sees_the_whole_chain_on_demand(critique: bool) -> None:
    model = Recorder()
    table = chains(model, FIRST[:1], rounds=2, critique=critique, context="chain").set_index("revision")  # type: ignore[arg-type]  # a stand-in
    one, two = (BY_ID[table.loc[n, "principle"]] for n in (1, 2))
    first = [PROMPTS[0], "With a pin."]
    if critique:
        first += [one.critique, "[critique 1]"]
    first += [one.revision, "[revision 1]"]
    assert model.seen[-1] == [*first, *([two.critique, "[critique 2]"] if critique else []), two.revision]


def test_direct_revision_has_no_critique(generator: Generator) -> None:
    table = chains(generator, critique=False)
    assert table["critique"].isna().all()
    assert set(table["mode"]) == {"direct"}


def test_few_shot_chains_come_first_and_lose_their_critiques_in_direct_revision() -> None:
    examples = {critique: critique_revise.few_shot(CONSTITUTION, critique=critique) for critique in (True, False)}
    for turns in examples.values():
        assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    n = len(CONSTITUTION.few_shot.critique_revision)
    assert len(examples[True]) == len(examples[False]) + 2 * n
    texts = [m["content"] for m in examples[True]]
    kept = [text for i, text in enumerate(texts) if i % 6 not in (2, 3)]  # answer, critique, revision: two turns each
    assert [m["content"] for m in examples[False]] == kept
    for critique in (True, False):
        model = Recorder()
        chains(model, FIRST[:1], rounds=1, critique=critique, shots=True)  # type: ignore[arg-type]  # a stand-in
        shown = [m["content"] for m in examples[critique]]
        assert model.seen[0][: len(shown) + 1] == [*shown, PROMPTS[0]]


# ---------------------------------------------------------------- principles


def drawn(prompt: str, rounds: int, principles: int | None = None, *, replacement: bool) -> list[str]:
    found = critique_revise.draw_principles(
        CONSTITUTION, prompt, rounds, 0, replacement=replacement, principles=principles
    )
    return [p.id for p in found]


def test_with_replacement_every_round_draws_from_all_principles() -> None:
    orders = [drawn(str(i), 4, replacement=True) for i in range(2000)]
    assert {name for order in orders for name in order} == set(BY_ID)
    repeated = sum(len(set(order)) < 4 for order in orders) / len(orders)
    assert repeated == pytest.approx(1 - 15 / 16 * 14 / 16 * 13 / 16, abs=0.035)  # three standard errors
    for n in range(4):  # each round is uniform by itself
        counts = pd.Series([order[n] for order in orders]).value_counts()
        assert ((counts - 125) ** 2 / 125).sum() < 37.7  # chi-squared, 15 degrees of freedom, 0.1 %


def test_without_replacement_no_principle_comes_twice() -> None:
    orders = [drawn(str(i), 4, replacement=False) for i in range(200)]
    assert {name for order in orders for name in order} == set(BY_ID)
    assert all(len(set(order)) == 4 for order in orders)


@pytest.mark.parametrize("replacement", [True, False])
def test_pools_of_principles_are_nested_and_the_same_for_all_prompts(replacement: bool) -> None:
    pools = [
        {name for prompt in range(99) for name in drawn(str(prompt), 4, n, replacement=replacement)}
        for n in (1, 2, 8, 16)
    ]
    assert [len(pool) for pool in pools] == [1, 2, 8, 16]
    assert all(small <= large for small, large in itertools.pairwise(pools))


def test_a_pool_without_replacement_is_used_up_before_it_begins_again() -> None:
    order = drawn("x", 4, 2, replacement=False)
    assert order == [*order[:2], *order[:2]]
    assert len(set(order)) == 2


def test_the_number_of_principles_is_recorded(generator: Generator) -> None:
    table = chains(generator, principles=2)
    assert set(table["n_principles"]) == {2}
    assert table["principle"].nunique() <= 2


@pytest.mark.parametrize(
    ("rounds", "principles", "replacement", "expected"),
    [
        (17, None, False, "revise.rounds: 17 rounds without replacement need as many principles"),
        (4, 17, True, "revise.also_principles: 17 asked for, constitution 'default' has 16"),
        (4, 0, True, "revise.also_principles: 0 asked for"),
    ],
)
def test_too_few_principles_are_an_error(rounds: int, principles: int | None, replacement: bool, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        critique_revise.check_principles(CONSTITUTION, rounds, principles, replacement=replacement)


def test_enough_principles_are_no_error() -> None:
    critique_revise.check_principles(CONSTITUTION, 17, None, replacement=True)
    critique_revise.check_principles(CONSTITUTION, 16, None, replacement=False)
    critique_revise.check_principles(CONSTITUTION, 4, 1, replacement=False)
