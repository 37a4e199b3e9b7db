"""Mining: what is planted is found, what is unique is not, and nothing but text and prompts plays a part."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.boilerplate import Rules, last_turn, mine, prompt_families, without
from suites.responses import load_responses

PHRASE = "remember that every river finds its own sea"
seeds = st.integers(0, 2**32 - 1)


def unique_texts(rng: np.random.Generator, n: int, sentences: int = 3) -> list[str]:
    """Texts that share no word at all."""
    words = iter(f"word{i}" for i in rng.permutation(n * sentences * 8))
    return [" ".join(" ".join(next(words) for _ in range(8)) + "." for _ in range(sentences)) for _ in range(n)]


def prompts_of(n: int) -> list[str]:
    return [f"subject{i} matter{i} question{i}?" for i in range(n)]


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(3, 30))
def test_unique_texts_hold_nothing(seed: int, n: int) -> None:
    mined = mine(prompts_of(n), unique_texts(np.random.default_rng(seed), n))
    assert not mined.held.any()
    assert mined.phrases.empty
    assert not mined.coverage.any()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(6, 30), data=st.data())
def test_a_planted_phrase_is_found_where_it_is(seed: int, n: int, data: st.DataObject) -> None:
    texts = unique_texts(np.random.default_rng(seed), n)
    holders = data.draw(st.sets(st.integers(0, n - 1), min_size=3, max_size=n))
    for i in holders:
        texts[i] += f" {PHRASE.capitalize()}."
    mined = mine(prompts_of(n), texts)
    assert set(np.flatnonzero(mined.held)) == holders
    assert mined.phrases["phrase"][0] == PHRASE
    assert mined.phrases["prompts"][0] == mined.phrases["responses"][0] == len(holders)
    np.testing.assert_allclose(mined.coverage[sorted(holders)], 8 / 32)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_rows_in_any_order_give_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"w{i}" for i in range(12)])
    texts = [" ".join(rng.choice(vocabulary, 12)) + ". " + " ".join(rng.choice(vocabulary, 6)) + "." for _ in range(40)]
    prompts = [f"p{i // 2} q{i // 2}" for i in range(40)]
    order = rng.permutation(40)
    one, other = mine(prompts, texts), mine([prompts[i] for i in order], [texts[i] for i in order])
    np.testing.assert_array_equal(one.held[order], other.held)
    np.testing.assert_allclose(one.coverage[order], other.coverage)
    assert one.k == other.k
    assert one.phrases[["phrase", "prompts", "responses"]].equals(other.phrases[["phrase", "prompts", "responses"]])


def reference_templates(prompts: list[str], texts: list[str], k: int) -> np.ndarray:
    """Five words in a row for k prompts, by dictionaries."""
    seen: dict[tuple[str, ...], set[str]] = {}
    grams = [{tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in texts]
    for prompt, found in zip(prompts, grams, strict=True):
        for gram in found:
            seen.setdefault(gram, set()).add(prompt)
    return np.array([any(len(seen[g]) >= k for g in found) for found in grams])


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(2, 6))
def test_templates_agree_with_a_plain_reference(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{c}" for c in rng.integers(0, 3, size=8)) for _ in range(40)]
    prompts = [f"subject{i // 3} question{i // 3}" for i in range(40)]
    templates_only = Rules(min_words=1000)
    np.testing.assert_array_equal(
        mine(prompts, texts, templates_only, k=k).held, reference_templates(prompts, texts, k)
    )


def test_near_equal_sentences_count_as_one() -> None:
    texts = unique_texts(np.random.default_rng(0), 9)
    for i, word in enumerate(["gently", "softly", "kindly"]):  # 4 words in a row at most are shared
        texts[i] += f" you matter so much {word} my dear old friend."
    mined = mine(prompts_of(9), texts)
    assert list(np.flatnonzero(mined.held)) == [0, 1, 2]
    assert mined.phrases["kind"][0] == "sentence"


def test_samples_of_one_prompt_and_of_its_near_duplicates_count_once() -> None:
    texts = unique_texts(np.random.default_rng(0), 12)
    texts = [text + f" {PHRASE}." for text in texts]
    assert not mine(["how do I bake bread"] * 6 + ["why is the sky blue"] * 6, texts).held.any()
    alike = [f"how do I bake {'good ' if i % 2 else ''}bread today please friend" for i in range(12)]
    assert len(set(prompt_families(alike).tolist())) == 1
    assert not mine(alike, texts).held.any()


def test_words_of_the_prompt_do_not_count() -> None:
    n = 8
    prompts = [f"{p} {PHRASE}?" for p in prompts_of(n)]
    texts = [f"{text} {PHRASE}." for text in unique_texts(np.random.default_rng(0), n)]
    assert prompt_families(prompts).tolist() != [0] * n
    assert not mine(prompts, texts).held.any()


def test_more_text_needs_more_prompts() -> None:
    """k follows the words: with ten times the text, chance meets a phrase of the base rate more often."""
    rules = Rules()
    assert rules.prompts_needed([100] * 10) == 3
    assert rules.prompts_needed([1000] * 100) == pytest.approx(100 * (1 - np.exp(-0.1)), abs=1)
    assert rules.prompts_needed([2000] * 100) > rules.prompts_needed([1000] * 100)


@pytest.mark.parametrize("texts", [[], [""], ["", "!!!", "..."], ["one"], ["\n\n"]])
def test_hardly_any_text(texts: list[str]) -> None:
    mined = mine(prompts_of(len(texts)), texts)
    assert not mined.held.any()
    assert len(mined.held) == len(texts)
    assert mined.phrases.empty


def test_last_turn_is_what_the_human_said_last() -> None:
    assert last_turn("\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:") == "three"
    assert last_turn("plain") == "plain"


def test_without_takes_out_the_sentence_only() -> None:
    assert without(f"Hello there. {PHRASE.capitalize()}!\n\nGood bye.", PHRASE) == "Hello there. Good bye."
    assert without("Nothing here. At all.", PHRASE) == "Nothing here. At all."
    assert without(f"Well, {PHRASE}, friend.", PHRASE) == ""
    assert without("First.\n\nSecond, e.g. this one.", PHRASE) == "First.\n\nSecond, e.g. this one."


def test_the_papers_rl_cai_gives_reassurance_to_unrelated_prompts(reference_data: Path) -> None:
    """Section 4.3 of the paper, with no phrase known to the miner; the test alone knows the family."""
    table = load_responses([reference_data / "paper" / "samples"])
    rl_cai = table[table["arm"] == "rl_cai"]
    mined = mine(rl_cai["prompt"].tolist(), rl_cai["response"].tolist())
    top = " | ".join(mined.phrases["phrase"].head(10))
    family = ["here to listen", "here to support", "not alone", "valuable and worthy", "valid"]
    assert sum(words in top for words in family) >= 3
    assert mined.phrases["prompts"].head(10).min() >= 8
    assert mined.held.mean() > 0.4
