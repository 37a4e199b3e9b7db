"""KL along answers: what is computed by hand, the mean of the sampled log-ratio, and the same in any batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from harness.models import chat, checkpoints
from harness.models.base import Sample
from harness.models.divergence import mean_logprob, sequence_kl
from harness.models.transformers import Generator

PROMPTS = ["Why is the sky blue?", "Name a river.", "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Bye.\n\nAssistant:"]


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> tuple[Any, Any, Any]:
    """(a policy, the reference it has moved away from, their tokenizer)."""
    reference, tokenizer = checkpoints.load_policy(tiny_model)
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy, reference, tokenizer


def next_token(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


def test_it_is_the_sum_of_exact_divergences_alone_and_in_any_batch(models: tuple[Any, Any, Any]) -> None:
    policy, reference, tokenizer = models
    said = [("It scatters.", True), ("The Elbe, the Rhine and the", False), ("", True)]
    texts, ended = [text for text, _ in said], [whole for _, whole in said]
    expected = []
    for prompt, text, whole in zip(PROMPTS, texts, ended, strict=True):
        context, answer = chat.encode_prompt(tokenizer, prompt), chat.encode_response(tokenizer, text, ended=whole)
        steps = [[next_token(m, context + answer[:t]) for m in (policy, reference)] for t in range(len(answer))]
        expected.append(sum(rel_entr(p, q).sum() for p, q in steps))
    for size in (1, 2, 32):
        found = sequence_kl(policy, reference, tokenizer, PROMPTS, texts, ended, batch_size=size)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert min(expected) > 0


def test_a_policy_that_has_not_moved_is_at_zero(models: tuple[Any, Any, Any]) -> None:
    _, reference, tokenizer = models
    found = sequence_kl(reference, reference, tokenizer, PROMPTS, ["x", "y", ""], [True, False, False])
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_its_mean_is_that_of_the_sampled_log_ratio_with_less_variance(models: tuple[Any, Any, Any]) -> None:
    policy, reference, tokenizer = models
    n = 600
    samples: list[Sample] = Generator(policy, tokenizer, 100).sample(
        [PROMPTS[0]] * n, max_new_tokens=6, keys=[str(i) for i in range(n)]
    )
    context = chat.encode_prompt(tokenizer, PROMPTS[0])
    ratios = []
    for sample in samples:
        ids = torch.tensor([context + list(sample.ids)])
        with torch.inference_mode():
            logs = [m(input_ids=ids).logits[0, len(context) - 1 : -1].log_softmax(-1) for m in (policy, reference)]
        taken = torch.tensor(sample.ids)[:, None]
        ratios.append(float((logs[0].gather(1, taken) - logs[1].gather(1, taken)).sum()))
    found = sequence_kl(
        policy, reference, tokenizer, [PROMPTS[0]] * n, [s.text for s in samples], [s.ended for s in samples]
    )
    error = np.std(ratios) / np.sqrt(n)
    assert found.mean() == pytest.approx(np.mean(ratios), abs=4 * error)
    assert found.mean() > 4 * error  # a measure that is always 0 would fail
    assert found.std() < np.std(ratios) / 2


def test_the_likelihood_of_a_given_answer_is_a_mean_over_its_tokens(models: tuple[Any, Any, Any]) -> None:
    policy, _, tokenizer = models
    texts, ended = ["It scatters.", "The Elbe, the Rhine and the", ""], [True, False, False]
    expected = []
    for prompt, text, whole in zip(PROMPTS, texts, ended, strict=True):
        context, answer = chat.encode_prompt(tokenizer, prompt), chat.encode_response(tokenizer, text, ended=whole)
        steps = [np.log(next_token(policy, context + answer[:t])[token]) for t, token in enumerate(answer)]
        expected.append(np.mean(steps) if steps else np.nan)
    for size in (1, 2, 32):
        found = mean_logprob(policy, tokenizer, PROMPTS, texts, ended, batch_size=size)
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)
