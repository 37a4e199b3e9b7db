"""Each term of PPO against a plain float64 reference written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import ppo_math

torch.set_num_threads(1)
CASES = settings(max_examples=60, deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """A few ragged rows with log-probabilities, values and scores, as float64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    shape = (len(lengths), max(lengths))
    mask = np.array([[t < n for t in range(shape[1])] for n in lengths], dtype=float)
    spread = draw(st.sampled_from([0.01, 0.3, 2.0]))
    fields = {name: torch.tensor(rng.normal(0, spread, shape)) for name in ("logp", "old", "adv", "values", "returns")}
    return {
        "lengths": lengths,
        "mask": torch.tensor(mask),
        "scores": torch.tensor(rng.normal(0, 2, shape[0])),
        "clip": draw(st.sampled_from([0.1, 0.2, 0.5])),
        **fields,
    }


def each(case: dict):
    return ((i, t) for i, n in enumerate(case["lengths"]) for t in range(n))


@CASES
@given(cases(), st.floats(0, 1))
def test_rewards_put_the_score_on_the_last_token_and_the_kl_on_every_one(case: dict, beta: float) -> None:
    got = ppo_math.token_rewards(case["scores"], case["logp"], case["old"], case["mask"], beta)
    expected = np.zeros(tuple(got.shape))
    for i, t in each(case):
        expected[i, t] = -beta * (case["logp"][i, t] - case["old"][i, t])
        if t == case["lengths"][i] - 1:
            expected[i, t] += case["scores"][i]
    np.testing.assert_allclose(got, expected, atol=1e-12)


@CASES
@given(cases(), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_is_the_discounted_sum_of_temporal_differences(case: dict, gamma: float, lam: float) -> None:
    rewards, values = case["adv"] * case["mask"], case["values"]
    advantages, returns = ppo_math.gae(rewards, values, case["mask"], gamma, lam)
    for i, n in enumerate(case["lengths"]):
        v = [float(x) for x in values[i, :n]] + [0.0]
        delta = [float(rewards[i, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
            assert float(advantages[i, t]) == pytest.approx(expected, abs=1e-10)
            assert float(returns[i, t]) == pytest.approx(expected + v[t], abs=1e-10)
        assert not advantages[i, n:].any()
        assert not returns[i, n:].any()


@CASES
@given(cases())
def test_gae_at_lambda_one_is_reward_to_go_minus_value(case: dict) -> None:
    rewards = case["adv"] * case["mask"]
    _, returns = ppo_math.gae(rewards, case["values"], case["mask"], 1.0, 1.0)
    np.testing.assert_allclose(returns, rewards.flip(1).cumsum(1).flip(1) * case["mask"], atol=1e-10)


@CASES
@given(cases())
def test_policy_loss_and_its_clip_flag(case: dict) -> None:
    args = case["logp"], case["old"], case["adv"], case["clip"]
    losses, flags = ppo_math.policy_losses(*args), ppo_math.clipped(*args)
    for i, t in each(case):
        ratio = math.exp(float(case["logp"][i, t] - case["old"][i, t]))
        adv = float(case["adv"][i, t])
        bounded = min(max(ratio, 1 - case["clip"]), 1 + case["clip"])
        assert float(losses[i, t]) == pytest.approx(-min(ratio * adv, bounded * adv), abs=1e-10)
        assert bool(flags[i, t]) == (bounded * adv < ratio * adv)


@CASES
@given(cases())
def test_a_clipped_token_has_no_gradient(case: dict) -> None:
    logp = case["logp"].clone().requires_grad_()
    ppo_math.policy_losses(logp, case["old"], case["adv"], case["clip"]).sum().backward()
    flags = ppo_math.clipped(case["logp"], case["old"], case["adv"], case["clip"])
    assert not logp.grad[flags.bool()].any()


@CASES
@given(cases())
def test_value_loss(case: dict) -> None:
    losses = ppo_math.value_losses(case["values"], case["old"], case["returns"], case["clip"])
    for i, t in each(case):
        v, old, target = (float(case[k][i, t]) for k in ("values", "old", "returns"))
        near = old + min(max(v - old, -case["clip"]), case["clip"])
        assert float(losses[i, t]) == pytest.approx(max((v - target) ** 2, (near - target) ** 2) / 2, abs=1e-10)


@CASES
@given(cases())
def test_whitening_reads_real_tokens_only(case: dict) -> None:
    mask = case["mask"].bool()
    real = case["adv"][mask].numpy()
    noisy = torch.where(mask, case["adv"], torch.full_like(case["adv"], 1e6))
    got = ppo_math.whiten(noisy, case["mask"])
    np.testing.assert_allclose(got[mask], (real - real.mean()) / np.sqrt(real.var() + 1e-8), atol=1e-8)
    assert not got[~mask].any()


@CASES
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20))
def test_logprobs_and_entropies(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (2, 3, 7))
    ids = rng.integers(0, 7, (2, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = ppo_math.token_logprobs(torch.tensor(logits), torch.tensor(ids))
    np.testing.assert_allclose(got, np.log(np.take_along_axis(p, ids[..., None], -1)[..., 0]), atol=1e-8)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), -1)
    np.testing.assert_allclose(ppo_math.entropies(torch.tensor(logits)), entropy, atol=1e-8)


@given(st.floats(1e-3, 1), st.floats(0, 100), st.floats(0.1, 50))
def test_adaptive_coefficient_moves_toward_the_target_by_at_most_two_percent(beta: float, kl: float, goal: float):
    new = ppo_math.adapt(beta, kl, goal)
    assert new == pytest.approx(beta * (1 + 0.1 * float(np.clip((kl - goal) / goal, -0.2, 0.2))))
    assert (new > beta) == (kl > goal) or new == pytest.approx(beta)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 5))
def test_prompts_come_equally_often_and_do_not_depend_on_the_past(n: int, per_update: int, seed: int) -> None:
    drawn = [i for u in range(1, 2 * n + 1) for i in ppo_math.prompt_indices(n, per_update, u, seed)]
    assert np.bincount(drawn, minlength=n).tolist() == [2 * per_update] * n
