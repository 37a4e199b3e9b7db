"""PPO of a language model against a scorer (Bai et al. 2022, section 4; TRL kept no PPO after 1.12).

One update: sample answers (`rollouts`), score them, penalise each token by its KL to the reference, and take clipped
PPO steps (`ppo_math`) on the very ids that were sampled. The reference is the policy at the start: with LoRA the same
weights with the adapter off, otherwise a frozen copy. The value head is linear, on the policy's last hidden state.

Every random draw is a function of (seed, update), so a killed run goes on from `out/checkpoint/state.pt` and, on a
CPU, ends with the same bits. Models run in eval mode, so that the ratio of the first step is 1 (dropout would move it).

Several workers (`harness.ranks`) hold the same prompts, sample and read a share of each update's rollouts and gather
them, so that advantages, KL and rewards are those of all; they add the gradients of their shares of a step's rows.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from harness import ranks, store
from harness.errors import UserError
from harness.models import chat, checkpoints, sharded
from pipelines import ppo_math, rewards
from pipelines.ppo_config import PPOConfig, accelerator_for
from pipelines.ppo_learner import Learner
from pipelines.ppo_math import Batch
from pipelines.rollouts import RolloutEngine, Rollouts, engine_gap, response_logits, sampled

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]
_MAY_CHANGE = {"updates", "checkpoint_every", "snapshot_steps", "report_to"}  # of a config, between kill and resume


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
    reference: Any = None,
) -> pd.DataFrame:
    """Train `policy` (a PeftModel or a plain causal model); leave `out/model/` and `out/snapshots/step-*/`.

    Returns the log, one row an update (KL in nats a sequence); `.attrs["tokens"]` counts tokens read and written, and
    `.attrs["value_pretraining"]`, if there was any, has a row for each update of the value head alone.
    engine: samples the rollouts; None: the policy itself. reference: the start policy once more, for a policy without
    adapter; None: a copy is made, which one that is split over the workers does not allow. `model_card` is a format
    string with {step}. Goes on from `out/checkpoint/` where a killed run left one.
    Raises UserError for a reward or loss that is not finite, and for a checkpoint of another run.
    """
    return _Run(policy, tokenizer, prompts, scorer, config, out, engine, reference).train(on_update, model_card)


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
        reference: Any = None,
    ):
        if not prompts:
            raise UserError("PPO: no prompts to train on; give at least one")
        if config.rollouts_per_update < ranks.size():
            raise UserError(
                f"rl.rollouts_per_update: {config.rollouts_per_update} answers cannot be shared by {ranks.size()} "
                "workers; sample more, or give fewer workers in compute"
            )
        self.config, self.tokenizer, self.scorer, self.out = config, tokenizer, scorer, out
        self.prompts, self.engine = list(prompts), engine
        self.prompt_ids = [chat.encode_prompt(tokenizer, prompt) for prompt in self.prompts]
        self.accelerator = accelerator_for(config, out)
        self.policy = policy.eval()
        # Two sums a weight tell other weights apart, and cost a thousandth of one update.
        self.start = [
            (name, tuple(p.shape), float(p.float().sum()), float(p.float().norm()))
            for name, p in ((name, sharded.whole(p)) for name, p in policy.state_dict().items())
        ]
        self.adapter = policy.active_adapter if hasattr(policy, "peft_config") else None
        self.reference = None if self.adapter else (reference or copy.deepcopy(policy)).eval().requires_grad_(False)
        self.learner = Learner(self.policy, config, self.accelerator)
        if self.reference is not None and not self.learner.split:
            self.reference.to(self.accelerator.device)
        kinds: dict[str, Callable[[], rewards.Normaliser]] = {
            "none": rewards.Unchanged,
            "running": rewards.Running,
            "reference": lambda: rewards.Reference(self.reference_scores),
        }
        self.normaliser = kinds[config.reward_normalisation]()
        self.kl_coef, self.tokens = config.kl_coef, 0
        self.first_pass: tuple[Tensor, Tensor] | None = None  # (log pi, values) with their graph, for one step
        self.log: list[dict[str, Any]] = []
        self.pretrained: list[dict[str, float]] = []  # the value head's rows

    def train(self, on_update: Callable[[dict[str, Any]], None], model_card: str) -> pd.DataFrame:
        config = self.config
        self.restore()
        for number in range(len(self.pretrained) + 1, config.value_pretraining + 1):
            self.pretrained.append(self.pretrain(number))
            if number % config.checkpoint_every == 0:
                self.checkpoint()
        for update in range(len(self.log) + 1, config.updates + 1):
            self.log.append(self.update(update))
            self.accelerator.log({k: v for k, v in self.log[-1].items() if k != "step"}, step=update)
            if update in config.snapshot_steps:
                folder = self.out / "snapshots" / f"step-{update:06d}"
                checkpoints.save(self.policy, self.tokenizer, folder)
                store.write_text(folder / "README.md", model_card.format(step=update))
            if update % config.checkpoint_every == 0 or update == config.updates:
                self.checkpoint()
            on_update(self.log[-1])
        for tracker in self.accelerator.trackers:
            tracker.finish()  # and not end_training, which would end the workers' process group too
        checkpoints.save_merged(self.policy, self.tokenizer, self.out / "model")
        store.remove(self.out / "checkpoint")
        log = pd.DataFrame(self.log)
        log.attrs["tokens"] = self.tokens
        if self.pretrained:
            log.attrs["value_pretraining"] = self.pretrained
        return log

    def pretrain(self, number: int) -> dict[str, float]:
        """Fit the value head alone to answers of the start policy; its loss, and what it explained of new answers."""
        rollouts, returns = self.judged(number, values_only=True)
        centred, missed = (x - ppo_math.masked_mean(x, rollouts.mask) for x in (returns, returns - rollouts.values))
        variances = [float(ppo_math.masked_mean(x**2, rollouts.mask)) for x in (missed, centred)]
        losses = self.optimise(rollouts, number, values_only=True)
        explained = 1 - variances[0] / variances[1] if variances[1] > 0 else 0.0
        return {"value_loss": losses["value_loss"], "explained_variance": explained}

    def judged(self, turn: int, *, values_only: bool = False) -> tuple[Rollouts, Tensor]:
        """Rollouts with their advantages, and the rewards (rows, tokens) that each token is followed by."""
        config = self.config
        rollouts = self.rollout(turn, keep_graph=not values_only)
        mask = rollouts.mask
        scores = torch.tensor(rollouts.rewards).to(mask)
        by_token = ppo_math.token_rewards(scores, rollouts.logp, rollouts.ref_logp, mask, self.kl_coef)
        rollouts.advantages, rollouts.returns = ppo_math.gae(
            by_token, rollouts.values, mask, config.gamma, config.gae_lambda
        )
        return rollouts, ppo_math.gae(by_token, torch.zeros_like(rollouts.values), mask, config.gamma, 1.0)[1]

    def update(self, update: int) -> dict[str, Any]:
        """Sample, score, and optimise once; the update's row of the log."""
        began, config = time.perf_counter(), self.config
        turn = config.value_pretraining + update  # what draws are named by
        rollouts, _ = self.judged(turn)
        logp, ref_logp, mask = rollouts.logp, rollouts.ref_logp, rollouts.mask
        if config.whiten_advantages:
            rollouts.advantages = ppo_math.whiten(rollouts.advantages, mask)
        losses = self.optimise(rollouts, turn)
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
            **({} if config.reward_normalisation == "none" else {"reward_normalised": float(rollouts.rewards.mean())}),
            **engine_gap(rollouts),
            "seconds": time.perf_counter() - began,
        }
        if config.kl_target is not None:
            self.kl_coef = ppo_math.adapt(self.kl_coef, kl, config.kl_target)
        return row

    def rollout(self, turn: int, *, keep_graph: bool = True) -> Rollouts:
        """Answers to this turn's prompts, their scores, and the log-probabilities and values of their tokens.

        A worker samples, scores and reads its share of them; all have them all in the end.
        """
        config = self.config
        index = ppo_math.prompt_indices(len(self.prompts), config.rollouts_per_update, turn, config.seed)
        ids = [self.prompt_ids[i] for i in index]
        stop = chat.stop_ids(self.tokenizer)
        answers, sampled_logp = self.sample(ids, turn)
        responses, scores = self.scored(index, answers, self.place(turn))
        ended = np.array([row[-1] in stop for row in responses])
        used = self.normaliser(scores, index) - config.missing_eos_penalty * ~ended
        if turn == 1:
            self.learner.start_values_at(float(used.mean()))
        order, width = self.order(turn, 0, len(ids)), max(map(len, responses))
        own: list[Tensor] = []  # of each row (5, tokens)
        for rows in ranks.portions(order, config.minibatch_size):
            # The rows of the first step come first, so that the forward that reads them is also that step's.
            first = keep_graph and not own and ranks.size() == 1
            read = torch.stack(self.read(rows or order[:1], ids, responses, first), 1)
            own += nn.functional.pad(read, (0, width - read.shape[2])).cpu()[: len(rows)]
        read = torch.stack(ranks.gathered(own), 1)[:, np.argsort(order)].to(self.accelerator.device)
        mask, logp, ref_logp, values, entropy = read.unbind()
        return Rollouts(ids, responses, scores, used, ended, mask, logp, ref_logp, values, entropy, sampled_logp)

    def order(self, turn: int, epoch: int, rows: int) -> list[int]:
        """The order in which an epoch's steps see the rollouts."""
        return np.random.default_rng([self.config.seed, turn, epoch]).permutation(rows).tolist()

    def place(self, turn: int) -> str:
        """Where the run is, for what users read."""
        past = turn - self.config.value_pretraining
        return f"PPO update {past}" if past > 0 else f"PPO value pretraining {turn}"

    def scored(self, index: Sequence[int], answers: list[list[int]], place: str) -> tuple[list[list[int]], np.ndarray]:
        """(ids of each answer that are its own turn, its score), for the prompts at `index`.

        answers: this worker's share of them; what is returned is that of all workers.
        """
        own = [ppo_math.own_turn(self.tokenizer, answer) for answer in answers]
        texts = [chat.clean(self.tokenizer.decode(row, skip_special_tokens=True)) for row in own]
        asked = [self.prompts[i] for i in ranks.share(index)]
        given = np.asarray(self.scorer(asked, texts) if texts else [], dtype=np.float64)
        if given.shape != (len(texts),) or not np.isfinite(given).all():
            raise UserError(
                f"{place}: the scorer did not give one finite reward for each response; "
                "check the preference model, or try a lower learning rate"
            )
        both = ranks.gathered(list(zip(own, given.tolist(), strict=True)))
        responses, scores = [row for row, _ in both], np.array([score for _, score in both])
        self.tokens += sum(len(self.prompt_ids[i]) for i in index) + sum(map(len, responses))
        return responses, scores

    def sample(self, ids: list[list[int]], turn: int) -> tuple[list[list[int]], list[list[float]] | None]:
        """An answer to each prompt of this worker's share, by the engine or the policy itself.

        With an engine, its log-probabilities of all workers' answers.
        """
        keys = [f"{turn}/{i}" for i in range(len(ids))]
        answers, logp = self.drawn(self.policy, ranks.share(ids), ranks.share(keys), turn, self.engine)
        return answers, None if logp is None else ranks.gathered(logp)

    def drawn(
        self,
        policy: Any,
        ids: Sequence[list[int]],
        keys: Sequence[str],
        turn: int = 0,
        engine: RolloutEngine | None = None,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        config = self.config
        return sampled(
            policy,
            self.tokenizer,
            ids,
            keys,
            turn=turn,
            engine=engine,
            accelerator=self.accelerator,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )

    def reference_scores(self, index: Sequence[int]) -> np.ndarray:
        """Scores of one answer of the start policy to each of the prompts at `index`."""
        with self.as_reference() as reference:
            own = ranks.share(index)
            answers, _ = self.drawn(reference, [self.prompt_ids[i] for i in own], [f"reference/{i}" for i in own])
        return self.scored(index, answers, "PPO, the start policy's answers")[1]

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The start policy: the frozen copy, or the policy with its adapter off."""
        with self.policy.disable_adapter() if self.adapter else nullcontext():
            yield self.policy if self.adapter else self.reference

    def read(
        self, rows: Sequence[int], prompts: Sequence[list[int]], responses: Sequence[list[int]], graph: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(mask, log pi_old, log pi_ref, values, entropies) of some rollouts; `graph` keeps the policy's."""
        batch = self.batch(rows, prompts, responses)
        with torch.no_grad():
            ref_logp = self.reference_logprobs(batch)
        with torch.set_grad_enabled(graph):
            logits, values = self.learner.model(batch)
            logp = ppo_math.token_logprobs(logits, batch.response)
        if graph:
            self.first_pass = logp, values
        logits, logp, values = logits.detach(), logp.detach(), values.detach()
        return batch.mask, logp * batch.mask, ref_logp * batch.mask, values * batch.mask, ppo_math.entropies(logits)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """log pi_ref (rows, tokens)."""
        with self.accelerator.autocast(), self.as_reference() as reference:
            logits, _ = response_logits(reference, batch)
        temperature = self.config.temperature
        return ppo_math.token_logprobs(logits if temperature == 1 else logits / temperature, batch.response)

    def batch(self, rows: Sequence[int], prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Batch:
        pad_id, device = self.tokenizer.pad_token_id, self.accelerator.device
        return ppo_math.collate([prompts[i] for i in rows], [responses[i] for i in rows], pad_id, device)

    def optimise(self, rollouts: Rollouts, turn: int, values_only: bool = False) -> dict[str, float]:
        """The epochs of clipped steps; means over tokens of what was seen on the way. values_only: of the value head.

        A step's loss is the mean over all of its tokens, so that neither accumulation nor the number of workers, each
        of which reads its share of the rows, changes it.
        """
        config = self.config
        sums = dict.fromkeys(("clip_fraction", "value_loss", "policy_loss"), 0.0)
        for epoch in range(config.epochs):
            order = self.order(turn, epoch, len(rollouts.responses))
            for step in _chunks(order, config.minibatch_size * config.gradient_accumulation):
                n_tokens = rollouts.mask[step].sum()
                for rows in ranks.portions(step, config.minibatch_size):
                    # A worker without a row of its own takes part with one that counts nothing.
                    seen = self.losses(rollouts, rows or step[:1], values_only)
                    seen = {name: value * (len(rows) > 0) for name, value in seen.items()}
                    loss = (seen["policy_loss"] + config.value_coef * seen["value_loss"]) / n_tokens
                    if not torch.isfinite(loss):
                        raise UserError(f"{self.place(turn)}: the loss is {loss.item()}; try a lower learning rate")
                    self.learner.backward(loss)
                    for name in sums:
                        sums[name] += float(seen[name].detach())
                norm = self.learner.gradient_norm()
                if not torch.isfinite(norm):
                    raise UserError(f"{self.place(turn)}: the gradient is not finite; try a lower learning rate")
                self.learner.step()
        sums = {name: sum(part[name] for part in ranks.gathered([sums])) for name in sums}
        n_seen = float(rollouts.mask.sum()) * config.epochs
        return {name: value / n_seen for name, value in sums.items()}

    def losses(self, rollouts: Rollouts, rows: list[int], values_only: bool = False) -> dict[str, Tensor]:
        """Sums over the tokens of some rollouts."""
        config = self.config
        batch = self.batch(rows, rollouts.prompts, rollouts.responses)
        if self.first_pass is not None:
            (logp, values), self.first_pass = self.first_pass, None
        else:
            logits, values = self.learner.model(batch, values_only)
            logp = ppo_math.token_logprobs(logits, batch.response)
        width = batch.mask.shape[1]
        old_logp, old_values, advantages, returns = (
            x[rows, :width] for x in (rollouts.logp, rollouts.values, rollouts.advantages, rollouts.returns)
        )
        value_clip = math.inf if values_only else config.value_clip_range  # nothing leans on the head's values yet
        logp = torch.where(batch.mask > 0, logp, old_logp)  # padding must not overflow the ratio
        terms = {
            "clip_fraction": ppo_math.clipped(logp.detach(), old_logp, advantages, config.clip_range),
            "value_loss": ppo_math.value_losses(values, old_values, returns, value_clip),
            "policy_loss": ppo_math.policy_losses(logp, old_logp, advantages, config.clip_range),
        }
        return {name: (term * batch.mask).sum() for name, term in terms.items()}

    def checkpoint(self) -> None:
        """All that the next update depends on, in one file, so that one rename makes it appear whole.

        It is the same for any number of workers, so another number can go on from it.
        """
        state = {
            "identity": self.identity(),
            **self.learner.state(),
            "kl_coef": self.kl_coef,
            "tokens": self.tokens,
            "normaliser": self.normaliser.state(),
            "pretrained": self.pretrained,
            "log": self.log,
        }
        if not ranks.main():
            return
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
        if not ranks.told(file.is_file()):
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity():
            raise UserError(f"{file}: left by a run with other settings, prompts or weights; delete {file.parent}")
        self.learner.restore(state)
        self.normaliser.restore(state["normaliser"])
        self.kl_coef, self.tokens = state["kl_coef"], state["tokens"]
        self.pretrained, self.log = state["pretrained"], state["log"]

    def identity(self) -> str:
        """What must agree between a checkpoint and the run that goes on from it."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in _MAY_CHANGE}
        return hashlib.sha256(repr((settings, self.prompts, self.start)).encode()).hexdigest()


def _chunks(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
