"""PPO on a tiny random Llama: masks, references, resuming, and two tasks whose answer is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.errors import UserError
from harness.models import chat, checkpoints
from pipelines import ppo, ppo_config, ppo_math
from pipelines.rollouts import Rollouts, response_logits

torch.set_num_threads(1)
PROMPTS = ["Hi", "Name a colour.", "Why?"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template, fast.padding_side = CHATML, "left"
    return fast


def tiny(tokenizer: Any, *, lora: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    return checkpoints.add_lora(model, checkpoints.LoraSettings(rank=4, alpha=8)).eval() if lora else model


def lively(policy: Any) -> Any:
    """A LoRA policy whose adapter is no longer zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return policy


def config(**changes: Any) -> ppo.PPOConfig:
    base: dict[str, Any] = {
        "updates": 3,
        "rollouts_per_update": 6,
        "minibatch_size": 3,
        "epochs": 2,
        "max_new_tokens": 5,
        "learning_rate": 3e-3,
        "kl_coef": 0.1,
    }
    return ppo.PPOConfig(**base | changes)


def vowels(prompts: Any, responses: Any) -> np.ndarray:
    return np.array([sum(c in "aeiou" for c in r) + 0.1 * len(r) for r in responses], dtype=float)


def run_of(policy: Any, tokenizer: Any, out: Path, scorer: Any = vowels, **changes: Any) -> Any:
    return ppo._Run(policy, tokenizer, PROMPTS, scorer, config(**changes), out)


def encouraged_to_end(tokenizer: Any, ends: float) -> Any:
    """A model that ends its turn with about the given odds, whatever it read: its output layer gets a bias."""
    model = tiny(tokenizer)
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.eos_token_id] = ends
    old = model.lm_head
    model.lm_head = torch.nn.Linear(old.in_features, old.out_features, bias=True)
    with torch.no_grad():
        model.lm_head.weight.copy_(old.weight * 0.1)
        model.lm_head.bias.copy_(bias)
    return model


def test_old_log_probs_equal_an_unbatched_forward_of_each_row(tokenizer: Any, tmp_path: Path) -> None:
    run = run_of(encouraged_to_end(tokenizer, 4.5), tokenizer, tmp_path, temperature=0.7)
    rollouts = run.rollout(1)
    assert len(set(map(len, rollouts.responses))) > 1
    assert len(set(map(len, rollouts.prompts))) > 1
    for i, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        with torch.no_grad():
            logits = run.policy(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
        logp = torch.log_softmax(logits / 0.7, -1)
        n = len(response)
        np.testing.assert_allclose(rollouts.logp[i, :n], logp[range(n), response], atol=2e-5)
        np.testing.assert_allclose(rollouts.entropy[i, :n], -(logp.exp() * logp).sum(-1), atol=2e-4)
        assert rollouts.mask[i].sum() == n
        assert not rollouts.logp[i, n:].any()


@pytest.mark.parametrize(("ends", "cut"), [(9.0, False), (-30.0, True)])
def test_the_score_lands_on_a_trained_token(tokenizer: Any, tmp_path: Path, ends: float, cut: bool) -> None:
    run = run_of(encouraged_to_end(tokenizer, ends), tokenizer, tmp_path)
    rollouts = run.rollout(1)
    assert rollouts.ended.all() == (not cut)
    rewards = ppo_math.token_rewards(torch.ones(6), rollouts.logp, rollouts.ref_logp, rollouts.mask, 0.0)
    batch = run.batch(range(6), rollouts.prompts, rollouts.responses)
    for i, response in enumerate(rollouts.responses):
        (place,) = rewards[i].nonzero()[0].tolist()
        assert place == len(response) - 1
        assert batch.mask[i, place] == 1
        assert (batch.response[i, place] == tokenizer.eos_token_id) == (not cut)
        assert rewards[i].sum() == 1


def test_pad_equal_to_eos_masks_no_end_of_turn(tokenizer: Any, tmp_path: Path) -> None:
    """The masks are the lengths': with pad = eos every number of an update stays the same."""
    import copy

    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    logs = []
    for i, tok in enumerate((tokenizer, same)):
        policy = encouraged_to_end(tokenizer, 4.5)
        logs.append(ppo.train(policy, tok, PROMPTS, vowels, config(updates=2), tmp_path / str(i)))
    assert 0 < logs[0]["ended_fraction"].mean() < 1
    pd.testing.assert_frame_equal(logs[0].drop(columns="seconds"), logs[1].drop(columns="seconds"))


@pytest.mark.parametrize("offset", [-40.0, 6.0])
def test_a_reward_that_nothing_moves_teaches_nothing(tokenizer: Any, tmp_path: Path, offset: float) -> None:
    """A PM's zero is arbitrary. With values that begin at 0, whitening turned a score that all answers get into
    advantages by place: with lambda < 1 an offset counts less for early tokens than for late ones."""
    run = run_of(
        lively(tiny(tokenizer, lora=True)), tokenizer, tmp_path, lambda p, r: np.full(len(p), offset), kl_coef=0.0
    )
    before = {name: p.detach().clone() for name, p in run.learner.named()}
    run.update(1)
    for name, parameter in run.learner.named():
        if "value" not in name:
            torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=1e-6)


def test_an_ended_answer_trains_its_end_of_turn(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    batch = ppo_math.collate([[end, 5], [end, end, 6]], [[7, end], [8]], end, "cpu")
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.mask.tolist() == [[1, 1], [1, 0]]
    assert batch.position_ids[0].tolist() == [0, 0, 1, 2, 3]


def test_lora_reference_is_the_base_model_and_one_forward_equals_two(tokenizer: Any, tmp_path: Path) -> None:
    run = run_of(lively(tiny(tokenizer, lora=True)), tokenizer, tmp_path)
    rollouts = run.rollout(1)
    batch = run.batch(range(6), rollouts.prompts, rollouts.responses)
    with torch.no_grad():
        on = ppo_math.token_logprobs(response_logits(run.policy, batch)[0], batch.response)
        base = ppo_math.token_logprobs(response_logits(tiny(tokenizer), batch)[0], batch.response)
    np.testing.assert_allclose(rollouts.ref_logp, base * batch.mask, atol=1e-5)
    np.testing.assert_allclose(rollouts.logp, on * batch.mask, atol=1e-5)
    assert (rollouts.logp - rollouts.ref_logp).abs().max() > 0.05


def test_the_missing_eos_penalty_reads_the_response_only(tokenizer: Any, tmp_path: Path) -> None:
    """The prompt holds an end of turn in every row; only answers that were cut lose reward."""
    seen: dict[str, torch.Tensor] = {}

    class SeenError(Exception):
        pass

    def spy(rollouts: Rollouts, *_: Any) -> None:
        seen["returns"], seen["ended"] = rollouts.returns, torch.tensor(rollouts.ended)
        raise SeenError

    run = run_of(
        encouraged_to_end(tokenizer, 4.5), tokenizer, tmp_path, lambda p, r: np.zeros(len(r)), missing_eos_penalty=2.0
    )
    assert all(tokenizer.eos_token_id in row for row in run.prompt_ids)
    run.optimise = spy
    with pytest.raises(SeenError):
        run.update(1)
    assert set(seen["ended"].tolist()) == {True, False}
    penalised = seen["returns"].min(1).values < -1.9
    assert penalised.tolist() == (~seen["ended"]).tolist()


def test_the_scorer_reads_clean_text_of_the_sampled_ids(tokenizer: Any, tmp_path: Path) -> None:
    heard: list[tuple[Any, Any]] = []

    def scorer(prompts: Any, responses: Any) -> np.ndarray:
        heard.append((list(prompts), list(responses)))
        return np.zeros(len(responses))

    run = run_of(encouraged_to_end(tokenizer, 4.5), tokenizer, tmp_path, scorer)
    rollouts = run.rollout(1)
    prompts, responses = heard[0]
    assert [chat.encode_prompt(tokenizer, p) for p in prompts] == rollouts.prompts
    for text, ids in zip(responses, rollouts.responses, strict=True):
        assert "<|im_end|>" not in text
        assert text == chat.clean(tokenizer.decode(ids, skip_special_tokens=True))


def test_accumulated_minibatches_equal_one_large_one(tokenizer: Any, tmp_path: Path) -> None:
    weights = []
    for i, sizes in enumerate([(6, 1), (2, 3)]):
        policy = encouraged_to_end(tokenizer, 3.0)
        settings = config(updates=1, epochs=1, minibatch_size=sizes[0], gradient_accumulation=sizes[1])
        log = ppo.train(policy, tokenizer, PROMPTS, vowels, settings, tmp_path / str(i))
        weights.append((policy.lm_head.weight.detach(), log["policy_loss"][0], log["value_loss"][0]))
    (one, *losses), (many, *others) = weights
    np.testing.assert_allclose(one, many, atol=2e-4)
    assert losses == pytest.approx(others, abs=1e-5)


@pytest.mark.parametrize("minibatch", [2, 4, 6])
def test_the_forward_that_reads_the_first_steps_rows_is_also_its_own(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minibatch: int
) -> None:
    def trained(out: str) -> tuple[torch.Tensor, int]:
        policy, forwards = encouraged_to_end(tokenizer, 3.0), []
        run = run_of(policy, tokenizer, tmp_path / out, epochs=1, minibatch_size=minibatch)
        run.learner.model.register_forward_pre_hook(lambda *_: forwards.append(1))
        run.update(1)
        return policy.lm_head.weight.detach(), len(forwards)

    kept, forwards = trained("kept")
    read = ppo._Run.read
    monkeypatch.setattr(ppo._Run, "read", lambda run, *given: read(run, *given[:3], False))
    apart, more = trained("apart")
    steps = math.ceil(6 / minibatch)
    assert (forwards, more) == (2 * steps - 1, 2 * steps)
    np.testing.assert_allclose(kept, apart, atol=1e-6)


def train(policy: Any, tokenizer: Any, out: Path, **kwargs: Any) -> pd.DataFrame:
    settings = config(updates=4, kl_target=0.5, snapshot_steps=(2, 3), **kwargs.pop("changes", {}))
    return ppo.train(policy, tokenizer, PROMPTS, vowels, settings, out, model_card="step {step}", **kwargs)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_a_killed_run_resumes_to_the_same_bits(tokenizer: Any, tmp_path: Path, lora: bool, every: int) -> None:
    def kill(row: dict) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    changes = {"changes": {"checkpoint_every": every}}
    whole = train(tiny(tokenizer, lora=lora), tokenizer, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tokenizer, lora=lora), tokenizer, tmp_path / "killed", on_update=kill, **changes)
    (tmp_path / "killed" / "checkpoint" / "state.partial").write_bytes(b"torn")  # a kill while the next was written
    heard: list[int] = []
    resumed = train(
        tiny(tokenizer, lora=lora, seed=0),
        tokenizer,
        tmp_path / "killed",
        on_update=lambda r: heard.append(r["step"]),
        **changes,
    )
    assert heard == ([4] if every == 1 else [3, 4])
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"), check_exact=True)
    assert whole.attrs == resumed.attrs
    for place in ("model", "snapshots/step-000002", "snapshots/step-000003"):
        for file in (tmp_path / "whole" / place).glob("*.safetensors"):
            assert file.read_bytes() == (tmp_path / "killed" / place / file.name).read_bytes()
    assert not (tmp_path / "killed" / "checkpoint").exists()


def test_a_checkpoint_of_another_run_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    def kill(row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(tokenizer), tokenizer, tmp_path, on_update=kill)
    with pytest.raises(UserError, match=r"other settings.*delete"):
        train(tiny(tokenizer), tokenizer, tmp_path, changes={"learning_rate": 1.0})
    with pytest.raises(UserError, match=r"other settings.*delete"):  # another PM, say
        train(tiny(tokenizer), tokenizer, tmp_path, changes={"origin": "other"})
    other = tiny(tokenizer)
    with torch.no_grad():
        next(iter(other.parameters()))[0, 0] += 0.01
    with pytest.raises(UserError, match=r"other settings, prompts or weights"):
        train(other, tokenizer, tmp_path)


def test_model_and_snapshots_are_standard_checkpoints(tokenizer: Any, tmp_path: Path) -> None:
    policy = tiny(tokenizer, lora=True)
    log = train(policy, tokenizer, tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not (final(ids).logits - tiny(tokenizer)(ids).logits).abs().max() < 1e-4
    snapshot = tmp_path / "snapshots" / "step-000002"
    assert (snapshot / "README.md").read_text() == "step 2"
    assert json.loads((snapshot / "adapter_config.json").read_text())["r"] == 4
    assert (snapshot / "tokenizer.json").is_file()
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert log.attrs["tokens"] > 4 * 6 * 20
    columns = ["reward", "kl", "entropy", "clip_fraction", "value_loss", "policy_loss", "length"]
    columns += ["kl_coef", "ended_fraction", "seconds"]
    assert set(log.columns) == {"step", *columns}
    assert np.isfinite(log.to_numpy()).all()


def test_bf16_and_a_tracker_that_is_not_installed(tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ppo_config, "get_available_trackers", lambda: [])
    settings = config(updates=1, mixed_precision="bf16", report_to="tensorboard")
    with pytest.raises(UserError, match="report_to: tensorboard is not installed; `pip install tensorboard`"):
        ppo.train(tiny(tokenizer, lora=True), tokenizer, PROMPTS, vowels, settings, tmp_path)
    settings = config(updates=1, mixed_precision="bf16")
    log = ppo.train(tiny(tokenizer, lora=True), tokenizer, PROMPTS, vowels, settings, tmp_path)
    assert np.isfinite(log.to_numpy()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_names_the_update(tokenizer: Any, tmp_path: Path, bad: float) -> None:
    def scorer(prompts: Any, responses: Any) -> np.ndarray:
        return np.full(len(responses), bad)

    with pytest.raises(UserError, match=r"update 1: .*finite.*lower learning rate"):
        ppo.train(tiny(tokenizer), tokenizer, PROMPTS, scorer, config(), tmp_path)


def test_a_loss_that_is_not_finite_names_the_update(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"update \d+: .*lower learning rate"):
        ppo.train(tiny(tokenizer), tokenizer, PROMPTS, vowels, config(learning_rate=1e30), tmp_path)


def test_no_prompts(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompts"):
        ppo.train(tiny(tokenizer), tokenizer, [], vowels, config(), tmp_path)


def letter(responses: Any) -> np.ndarray:
    return np.array([1.5 if r[:1].isascii() and r[:1].isalpha() else 0.0 for r in responses])


@pytest.mark.parametrize("lora", [True, False])
def test_one_token_answers_reach_the_known_optimum(tokenizer: Any, tmp_path: Path, lora: bool) -> None:
    """argmax E[r] - beta KL is pi_ref exp(r / beta) / Z."""
    beta, ids = 0.75, torch.tensor([chat.encode_prompt(tokenizer, "Hi")])
    rewards = letter([chat.clean(tokenizer.decode([i], skip_special_tokens=True)) for i in range(len(tokenizer))])
    policy = tiny(tokenizer)
    with torch.no_grad():  # a hidden feature tells letters from the rest, so that low rank suffices
        policy.lm_head.weight[:, 0] = torch.where(torch.tensor(rewards) > 0, -0.2, 0.2)
    if lora:
        policy = checkpoints.add_lora(policy, checkpoints.LoraSettings(rank=4, alpha=8)).eval()
    with torch.no_grad():
        reference = torch.softmax(policy(input_ids=ids).logits[0, -1].double(), -1).numpy()
    best = reference * np.exp(rewards / beta)
    best /= best.sum()
    hit = rewards > 0
    settings = config(
        updates=30,
        rollouts_per_update=64,
        minibatch_size=64,
        epochs=2,
        max_new_tokens=1,
        learning_rate=1e-2 if lora else 3e-3,
        kl_coef=beta,
        whiten_advantages=False,
        value_clip_range=10.0,
        value_coef=0.5,
        checkpoint_every=1000,
    )
    ppo.train(policy, tokenizer, ["Hi"], lambda p, r: letter(r), settings, tmp_path)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        learned = torch.softmax(final(input_ids=ids).logits[0, -1].double(), -1).numpy()
    assert 0.1 < reference[hit].sum() < 0.5
    assert learned[hit].sum() == pytest.approx(best[hit].sum(), abs=0.05)
    assert abs(learned[hit].sum() - reference[hit].sum()) > 0.2


def test_a_rewarded_token_becomes_frequent_while_the_kl_stays_bounded(tokenizer: Any, tmp_path: Path) -> None:
    def share(prompts: Any, responses: Any) -> np.ndarray:
        return np.array([10 * np.mean([c.islower() for c in r] or [0]) for r in responses])

    settings = config(
        updates=24,
        rollouts_per_update=24,
        minibatch_size=24,
        max_new_tokens=6,
        kl_coef=0.3,
        checkpoint_every=1000,
    )
    log = ppo.train(tiny(tokenizer), tokenizer, PROMPTS, share, settings, tmp_path)
    first, last = log.head(1).mean(), log.tail(6).mean()
    assert last["reward"] > 2 * first["reward"] + 1
    assert last["reward"] - 0.3 * last["kl"] > first["reward"]  # what was gained pays for the KL
    assert log["kl"].max() < 20
    assert first["kl"] == pytest.approx(0, abs=1e-4)
