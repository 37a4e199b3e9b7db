"""PPO of a language model against a scorer (Bai et al. 2022, section 4; TRL kept no PPO after 1.12).

One update: sample answers, score them, penalise each token by its KL to the reference, and take clipped PPO steps
on the very ids that were sampled. The reference is the policy at the start: with LoRA the same weights with the
adapter off, otherwise a frozen copy. The value head is linear, on the policy's own last hidden state.

Every random draw is a function of (seed, update), so a killed run goes on from `out/checkpoint/state.pt` and, on a
CPU, ends with the same bits. One process and one device; models run in eval mode, so that the ratio of the first
step is 1 (dropout would move it).
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn

from harness.errors import UserError
from harness.models import chat, checkpoints
from harness.models import transformers as generation
from pipelines import ppo_math
from pipelines.ppo_math import Batch


class RolloutEngine(Protocol):
    """What samples rollouts in place of the policy itself: `harness.models.vllm.VllmModel`."""

    def sync(self, policy: Any, update: int) -> None:
        """Take the policy's weights; from now on rollouts are those of this update."""

    def rollout(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        update: int,
        keys: Sequence[str],
        seed: int,
        max_new_tokens: int,
        temperature: float,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """(ids, their log-probabilities) of an answer to each context; an error if `update` is not what was synced."""

    def rest(self) -> None:
        """Leave the memory of a shared GPU to training, until the next `sync`."""


Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]
_MAY_CHANGE = {"updates", "checkpoint_every", "snapshot_steps", "report_to"}  # of a config, between kill and resume


@dataclass(frozen=True)
class PPOConfig:
    """Settings of a run. An optimiser step reads minibatch_size x gradient_accumulation rollouts."""

    updates: int
    rollouts_per_update: int
    minibatch_size: int
    epochs: int
    max_new_tokens: int
    learning_rate: float
    kl_coef: float
    kl_target: float | None = None  # nats a sequence; when set, kl_coef adapts to hold the KL there
    temperature: float = 1.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    max_grad_norm: float = 1.0
    whiten_advantages: bool = True
    missing_eos_penalty: float = 0.0
    gradient_accumulation: int = 1
    checkpoint_every: int = 1
    snapshot_steps: tuple[int, ...] = ()
    seed: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    report_to: str | None = None
    rollout_batch_size: int = 64  # answers sampled at once
    origin: str = ""  # the caller's hash of what the run is made from, the scorer among it; a resumed run has the same

    def __post_init__(self) -> None:
        for name in ("updates", "rollouts_per_update", "minibatch_size", "epochs", "max_new_tokens", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"PPOConfig.{name}: {getattr(self, name)} is not positive; give at least 1")


@dataclass
class Rollouts:
    """Sampled answers with what was known of them before the update; tensors are (rows, tokens)."""

    prompts: list[list[int]]
    responses: list[list[int]]
    scores: np.ndarray
    ended: np.ndarray
    mask: Tensor
    logp: Tensor
    ref_logp: Tensor
    values: Tensor
    entropy: Tensor
    sampled_logp: list[list[float]] | None = None  # the rollout engine's own
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: Tensor = field(default_factory=lambda: torch.empty(0))


class ActorCritic(nn.Module):
    """A policy and its value head; both read response positions only (the vocabulary is wide)."""

    def __init__(self, policy: Any, temperature: float):
        super().__init__()
        self.policy, self.temperature = policy, temperature
        self.value = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits at the sampling temperature, values): at the states in which each response token was chosen."""
        logits, hidden = response_logits(self.policy, batch)
        return logits / self.temperature, self.value(hidden.to(self.value.weight.dtype)).squeeze(-1).float()


def response_logits(policy: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logits (rows, tokens, vocabulary) in float32, last hidden states), from which response tokens were drawn.

    The hidden states are what the output layer reads, taken there, so that every model's own last steps (norm,
    scaling, capping of logits) stay in force.
    """
    width = batch.response.shape[1]
    start = batch.ids.shape[1] - width - 1
    seen: list[Tensor] = []
    hook = policy.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = policy(
            input_ids=batch.ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=torch.arange(start, start + width, device=batch.ids.device),
            use_cache=False,
        ).logits
    finally:
        hook.remove()
    return logits.float(), seen[0]


def train(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    scorer: Scorer,
    config: PPOConfig,
    out: Path,
    *,
    on_update: Callable[[dict[str, Any]], None] = lambda row: None,
    model_card: str = "",
    engine: RolloutEngine | None = None,
) -> pd.DataFrame:
    """Train `policy` (a PeftModel or a plain causal model); leave `out/model/` and `out/snapshots/step-*/`.

    Returns the log, one row an update (KL in nats a sequence); `.attrs["tokens"]` counts tokens read and written.
    engine: samples the rollouts; None: the policy itself. `model_card` is a format string with {step}. Goes on from
    `out/checkpoint/` where a killed run left one.
    Raises UserError for a reward or loss that is not finite, and for a checkpoint of another run.
    """
    return _Run(policy, tokenizer, prompts, scorer, config, out, engine).train(on_update, model_card)


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        policy: Any,
        tokenizer: Any,
        prompts: Sequence[str],
        scorer: Scorer,
        config: PPOConfig,
        out: Path,
        engine: RolloutEngine | None = None,
    ):
        if not prompts:
            raise UserError("PPO: no prompts to train on; give at least one")
        self.config, self.tokenizer, self.scorer, self.out = config, tokenizer, scorer, out
        self.prompts, self.engine = list(prompts), engine
        self.prompt_ids = [chat.encode_prompt(tokenizer, prompt) for prompt in self.prompts]
        self.accelerator = _accelerator(config, out)
        self.policy = policy.eval()
        # Two sums a weight tell other weights apart, and cost a thousandth of one update.
        self.start = [
            (name, tuple(p.shape), float(p.float().sum()), float(p.float().norm()))
            for name, p in policy.state_dict().items()
        ]
        self.adapter = policy.active_adapter if hasattr(policy, "peft_config") else None
        self.reference = None if self.adapter else copy.deepcopy(policy).requires_grad_(False)
        model = ActorCritic(self.policy, config.temperature)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.trained, lr=config.learning_rate, weight_decay=0.0, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.reference is not None:
            self.reference.to(self.accelerator.device)
        self.kl_coef, self.tokens = config.kl_coef, 0
        self.first_pass: tuple[Tensor, Tensor] | None = None  # (log pi, values) with their graph, for one step
        self.log: list[dict[str, Any]] = []

    def train(self, on_update: Callable[[dict[str, Any]], None], model_card: str) -> pd.DataFrame:
        config = self.config
        self.restore()
        for update in range(len(self.log) + 1, config.updates + 1):
            self.log.append(self.update(update))
            self.accelerator.log({k: v for k, v in self.log[-1].items() if k != "step"}, step=update)
            if update in config.snapshot_steps:
                folder = self.out / "snapshots" / f"step-{update:06d}"
                checkpoints.save(self.policy, self.tokenizer, folder)
                (folder / "README.md").write_text(model_card.format(step=update), encoding="utf-8")
            if update % config.checkpoint_every == 0 or update == config.updates:
                self.checkpoint()
            on_update(self.log[-1])
        self.accelerator.end_training()
        checkpoints.save(
            self.policy.merge_and_unload() if self.adapter else self.policy, self.tokenizer, self.out / "model"
        )
        shutil.rmtree(self.out / "checkpoint", ignore_errors=True)
        log = pd.DataFrame(self.log)
        log.attrs["tokens"] = self.tokens
        return log

    def update(self, update: int) -> dict[str, Any]:
        """Sample, score, and optimise once; the update's row of the log."""
        began, config = time.perf_counter(), self.config
        rollouts = self.rollout(update)
        logp, ref_logp, mask = rollouts.logp, rollouts.ref_logp, rollouts.mask
        scores = torch.tensor(rollouts.scores - config.missing_eos_penalty * ~rollouts.ended).to(mask)
        rewards = ppo_math.token_rewards(scores, logp, ref_logp, mask, self.kl_coef)
        rollouts.advantages, rollouts.returns = ppo_math.gae(
            rewards, rollouts.values, mask, config.gamma, config.gae_lambda
        )
        if config.whiten_advantages:
            rollouts.advantages = ppo_math.whiten(rollouts.advantages, mask)
        losses = self.optimise(rollouts, update)
        kl = float(((logp - ref_logp) * mask).sum(1).mean())
        row = {
            "step": update,
            "reward": float(rollouts.scores.mean()),
            "kl": kl,
            "entropy": float(ppo_math.masked_mean(rollouts.entropy, mask)),
            **losses,
            "length": float(mask.sum(1).mean()),
            "kl_coef": self.kl_coef,
            "ended_fraction": float(rollouts.ended.mean()),
            **self.engine_gap(rollouts),
            "seconds": time.perf_counter() - began,
        }
        if config.kl_target is not None:
            self.kl_coef = ppo_math.adapt(self.kl_coef, kl, config.kl_target)
        return row

    def rollout(self, update: int) -> Rollouts:
        """Answers to this update's prompts, their scores, and the log-probabilities and values of their tokens."""
        config = self.config
        index = ppo_math.prompt_indices(len(self.prompts), config.rollouts_per_update, update, config.seed)
        ids = [self.prompt_ids[i] for i in index]
        stop = chat.stop_ids(self.tokenizer)
        answers, sampled_logp = self.sample(ids, update)
        responses = [ppo_math.own_turn(self.tokenizer, answer) for answer in answers]
        texts = [chat.clean(self.tokenizer.decode(row, skip_special_tokens=True)) for row in responses]
        scores = np.asarray(self.scorer([self.prompts[i] for i in index], texts), dtype=np.float64)
        if scores.shape != (len(texts),) or not np.isfinite(scores).all():
            raise UserError(
                f"PPO update {update}: the scorer did not give one finite reward for each response; "
                "check the preference model, or try a lower learning rate"
            )
        self.tokens += sum(map(len, ids)) + sum(map(len, responses))
        # When one minibatch holds all rollouts, the forward that reads them is also that of the first step.
        one = len(ids) <= config.minibatch_size
        parts = [self.read(rows, ids, responses, one) for rows in _chunks(range(len(ids)), config.minibatch_size)]
        width = max(map(len, responses))
        stacked = [
            torch.cat([nn.functional.pad(part[k], (0, width - part[k].shape[1])) for part in parts]) for k in range(5)
        ]
        ended = np.array([row[-1] in stop for row in responses])
        mask, logp, ref_logp, values, entropy = stacked
        return Rollouts(ids, responses, scores, ended, mask, logp, ref_logp, values, entropy, sampled_logp)

    def sample(self, ids: list[list[int]], update: int) -> tuple[list[list[int]], list[list[float]] | None]:
        """An answer to each prompt, by the engine (with its log-probabilities) or the policy itself."""
        config = self.config
        keys = [f"{update}/{i}" for i in range(len(ids))]
        if self.engine is not None:
            self.engine.sync(self.policy, update)
            sampled = self.engine.rollout(
                ids,
                update=update,
                keys=keys,
                seed=config.seed,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
            )
            self.engine.rest()
            return sampled
        answers: list[list[int]] = [[] for _ in ids]
        with self.accelerator.autocast():
            for rows in generation.batches([len(row) for row in ids], config.rollout_batch_size):
                said = generation.decode(
                    self.policy,
                    [ids[i] for i in rows],
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    keys=[keys[i] for i in rows],
                    seed=config.seed,
                    eos_ids=chat.stop_ids(self.tokenizer),
                    pad_id=self.tokenizer.pad_token_id,
                )
                for i, answer in zip(rows, said, strict=True):
                    answers[i] = answer
        return answers, None

    def engine_gap(self, rollouts: Rollouts) -> dict[str, float]:
        """How far the engine's log-probabilities of the sampled tokens lie from the trainer's: mean and largest."""
        if rollouts.sampled_logp is None:
            return {}
        gaps = np.concatenate(
            [
                np.abs(rollouts.logp[i, : len(row)].cpu().numpy() - np.asarray(rollouts.sampled_logp[i][: len(row)]))
                for i, row in enumerate(rollouts.responses)
            ]
        )
        return {"engine_gap_mean": float(gaps.mean()), "engine_gap_max": float(gaps.max())}

    def read(
        self, rows: Sequence[int], prompts: Sequence[list[int]], responses: Sequence[list[int]], graph: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(mask, log pi_old, log pi_ref, values, entropies) of some rollouts; `graph` keeps the policy's."""
        batch = self.batch(rows, prompts, responses)
        with torch.no_grad():
            ref_logp = self.reference_logprobs(batch)
        with torch.set_grad_enabled(graph):
            logits, values = self.model(batch)
            logp = ppo_math.token_logprobs(logits, batch.response)
        if graph:
            self.first_pass = logp, values
        logits, logp, values = logits.detach(), logp.detach(), values.detach()
        return batch.mask, logp * batch.mask, ref_logp * batch.mask, values * batch.mask, ppo_math.entropies(logits)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """log pi_ref (rows, tokens): of the frozen copy, or of the policy with its adapter off."""
        with self.accelerator.autocast(), self.policy.disable_adapter() if self.adapter else nullcontext():
            logits, _ = response_logits(self.policy if self.adapter else self.reference, batch)
        return ppo_math.token_logprobs(logits / self.config.temperature, batch.response)

    def batch(self, rows: Sequence[int], prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Batch:
        pad_id, device = self.tokenizer.pad_token_id, self.accelerator.device
        return ppo_math.collate([prompts[i] for i in rows], [responses[i] for i in rows], pad_id, device)

    def optimise(self, rollouts: Rollouts, update: int) -> dict[str, float]:
        """The epochs of clipped steps; means over tokens of what was seen on the way.

        A step's loss is the mean over all of its tokens, so accumulation equals one large minibatch.
        """
        config = self.config
        sums = dict.fromkeys(("clip_fraction", "value_loss", "policy_loss"), 0.0)
        for epoch in range(config.epochs):
            order = np.random.default_rng([config.seed, update, epoch]).permutation(len(rollouts.responses))
            for step in _chunks(order.tolist(), config.minibatch_size * config.gradient_accumulation):
                micro = list(_chunks(step, config.minibatch_size))
                n_tokens = rollouts.mask[step].sum()
                for k, rows in enumerate(micro):
                    last = k == len(micro) - 1
                    with nullcontext() if last else self.accelerator.no_sync(self.model):
                        seen = self.losses(rollouts, rows)
                        loss = (seen["policy_loss"] + config.value_coef * seen["value_loss"]) / n_tokens
                        if not torch.isfinite(loss):
                            raise UserError(
                                f"PPO update {update}: the loss is {loss.item()}; try a lower learning rate"
                            )
                        self.accelerator.backward(loss)
                    for name in sums:
                        sums[name] += float(seen[name].detach())
                norm = self.accelerator.clip_grad_norm_(self.trained, config.max_grad_norm)
                if not torch.isfinite(norm):
                    raise UserError(f"PPO update {update}: the gradient is not finite; try a lower learning rate")
                self.optimizer.step()
                self.optimizer.zero_grad()
        n_seen = float(rollouts.mask.sum()) * config.epochs
        return {name: value / n_seen for name, value in sums.items()}

    def losses(self, rollouts: Rollouts, rows: list[int]) -> dict[str, Tensor]:
        """Sums over the tokens of some rollouts."""
        config = self.config
        batch = self.batch(rows, rollouts.prompts, rollouts.responses)
        if self.first_pass is not None:
            (logp, values), self.first_pass = (x[rows] for x in self.first_pass), None
        else:
            logits, values = self.model(batch)
            logp = ppo_math.token_logprobs(logits, batch.response)
        width = batch.mask.shape[1]
        old_logp, old_values, advantages, returns = (
            x[rows, :width] for x in (rollouts.logp, rollouts.values, rollouts.advantages, rollouts.returns)
        )
        logp = torch.where(batch.mask > 0, logp, old_logp)  # padding must not overflow the ratio
        terms = {
            "clip_fraction": ppo_math.clipped(logp.detach(), old_logp, advantages, config.clip_range),
            "value_loss": ppo_math.value_losses(values, old_values, returns, config.value_clip_range),
            "policy_loss": ppo_math.policy_losses(logp, old_logp, advantages, config.clip_range),
        }
        return {name: (term * batch.mask).sum() for name, term in terms.items()}

    def checkpoint(self) -> None:
        """All that the next update depends on, in one file, so that one rename makes it appear whole."""
        state = {
            "identity": self.identity(),
            "trained": {name: p.detach().cpu() for name, p in self.named()},
            "optimizer": self.optimizer.state_dict(),
            "kl_coef": self.kl_coef,
            "tokens": self.tokens,
            "log": self.log,
        }
        file = self.out / "checkpoint" / "state.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)

    def restore(self) -> None:
        file = self.out / "checkpoint" / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity():
            raise UserError(f"{file}: left by a run with other settings, prompts or weights; delete {file.parent}")
        with torch.no_grad():
            for name, parameter in self.named():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl_coef, self.tokens, self.log = state["kl_coef"], state["tokens"], state["log"]

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        model = self.accelerator.unwrap_model(self.model)
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def identity(self) -> str:
        """What must agree between a checkpoint and the run that goes on from it."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in _MAY_CHANGE}
        return hashlib.sha256(repr((settings, self.prompts, self.start)).encode()).hexdigest()


def _accelerator(config: PPOConfig, out: Path) -> Accelerator:
    """An Accelerator with its tracker started; a tracker that is not installed is warned of and left out."""
    tracker = config.report_to
    if tracker is not None and tracker not in [str(t) for t in get_available_trackers()]:
        warnings.warn(f"{tracker} is not installed: PPO's log is in the returned table only", stacklevel=4)
        tracker = None
    for shared in (AcceleratorState, GradientState):
        shared._reset_state()  # a trainer before us in this process may have set another precision
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with=tracker, project_dir=out / "tracking")
    if tracker is not None:
        numbers = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str)}
        accelerator.init_trackers("ppo", config=numbers)
    return accelerator


def _chunks(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
