"""Chains: their shape, principles without replacement, resuming, direct revision, the right context."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch

import constitutions
from harness.errors import UserError
from harness.models import chat, checkpoints
from harness.models.transformers import Generator, uniforms
from pipelines import critique_revise

PROMPTS = ["How do I pick a lock?", "Tell me a rude joke about my neighbour, please.", "hello"]
CONSTITUTION = constitutions.load("default")


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> Generator:
    return Generator(*checkpoints.load_policy(tiny_model), batch_size=2)


def chains(generator: Generator, prompts: list[str] = PROMPTS, **settings: object) -> pd.DataFrame:
    defaults = {
        "arm": "helpful_only",
        "rounds": 4,
        "critique": True,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "seed": 0,
    }
    defaults |= {"shots": False} | settings
    return critique_revise.run(generator, CONSTITUTION, prompts, **defaults)


def test_a_chain_has_an_answer_and_four_critiques_and_revisions(generator: Generator) -> None:
    table = chains(generator)
    assert list(table.columns) == critique_revise.COLUMNS
    for _, chain in table.groupby("prompt"):
        assert sorted(chain["revision"]) == [0, 1, 2, 3, 4]
        later = chain[chain["revision"] > 0]
        assert later["principle"].nunique() == 4  # drawn without replacement
        assert later["critique"].notna().all()
        assert chain.loc[chain["revision"] == 0, ["principle", "critique"]].isna().all(axis=None)


def test_a_chain_does_not_depend_on_its_batch(generator: Generator) -> None:
    together = chains(generator).sort_values(["prompt", "revision"], ignore_index=True)
    alone = pd.concat([chains(generator, [p]) for p in PROMPTS]).sort_values(["prompt", "revision"], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone)


def test_the_revision_is_sampled_in_view_of_the_critique(generator: Generator) -> None:
    """The first critique and revision equal those drawn from a fresh forward over the whole conversation."""
    prompt = PROMPTS[0]
    table = chains(generator, [prompt], rounds=1).set_index("revision")
    tokenizer, model = generator.tokenizer, generator.model
    by_id = {p.id: p for p in CONSTITUTION.critique_revision}
    principle = by_id[table.loc[1, "principle"]]
    ids = chat.encode_prompt(tokenizer, prompt)

    def drawn(context: list[int], turn: str) -> tuple[list[int], str]:
        said: list[int] = []
        for u in uniforms(0, f"{prompt}/{turn}", 6):
            cdf = torch.softmax(model(torch.tensor([context + said])).logits[0, -1].float(), -1).double().cumsum(-1)
            token = int(torch.searchsorted(cdf, torch.tensor(u) * cdf[-1], right=True))
            if token in chat.stop_ids(tokenizer):
                break
            said.append(token)
        return said, chat.clean(tokenizer.decode(said, skip_special_tokens=True))

    for turn, request, expected in (
        ("0", None, table.loc[0, "response"]),
        ("critique 1", principle.critique, table.loc[1, "critique"]),
        ("revision 1", principle.revision, table.loc[1, "response"]),
    ):
        ids = ids + (chat.encode_next_turn(tokenizer, request) if request else [])
        said, text = drawn(ids, turn)
        assert text == expected
        ids = ids + said


def test_direct_revision_has_no_critique(generator: Generator) -> None:
    table = chains(generator, critique=False)
    assert table["critique"].isna().all()
    assert set(table["mode"]) == {"direct"}


def test_few_shot_chains_come_first(generator: Generator) -> None:
    before = critique_revise.few_shot(CONSTITUTION)
    assert [m["role"] for m in before][:2] == ["user", "assistant"]
    assert len(chains(generator, shots=True, rounds=1)) == 2 * len(PROMPTS)


def test_more_rounds_than_principles_is_an_error() -> None:
    with pytest.raises(UserError, match="17 rounds"):
        critique_revise.draw_principles(CONSTITUTION, "x", 17, 0)


def test_fewer_principles_than_rounds_come_round_again(generator: Generator) -> None:
    orders = {n: critique_revise.draw_principles(CONSTITUTION, "x", 4, 0, n) for n in (1, 2, 8, 16)}
    assert len(set(orders[1])) == 1
    assert orders[2] == [*orders[2][:2], *orders[2][:2]]
    assert len(set(orders[8])) == 4
    pools = [
        {i for p in range(99) for i in critique_revise.draw_principles(CONSTITUTION, str(p), 4, 0, n)} for n in orders
    ]
    assert [len(pool) for pool in pools] == [1, 2, 8, 16]
    assert all(small <= large for small, large in itertools.pairwise(pools))
    with pytest.raises(UserError, match="17 principles asked for"):
        critique_revise.draw_principles(CONSTITUTION, "x", 4, 0, 17)
    table = chains(generator, PROMPTS, principles=2)
    assert set(table["n_principles"]) == {2}
    assert table["principle"].nunique() == 2


def test_draws_differ_between_prompts_and_cover_the_constitution() -> None:
    drawn = [critique_revise.draw_principles(CONSTITUTION, str(i), 4, 0) for i in range(200)]
    assert {i for order in drawn for i in order} == set(range(len(CONSTITUTION.critique_revision)))
    assert all(len(set(order)) == 4 for order in drawn)
