"""What PPO trains and how it steps: the policy with its value head and their optimiser, on one worker or several.

Several workers (`harness.ranks`) each call `backward` on their shares of a step's rows; `gradient_norm` adds up what
they have. Where the policy is split over them (`harness.models.sharded`), FSDP2 averages, which `backward` makes good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness import ranks
from harness.models import sharded
from pipelines.ppo_config import PPOConfig
from pipelines.rollouts import ActorCritic


class Learner:
    """`model` is the policy and its value head, `optimizer` AdamW on those of its parameters that are `trained`."""

    def __init__(self, policy: Any, config: PPOConfig, accelerator: Accelerator):
        self.accelerator, self.max_grad_norm = accelerator, config.max_grad_norm
        model = ActorCritic(policy, config.temperature)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        # What is split has a group of its own, since fused steps do not mix the two.
        groups = [[p for p in self.trained if isinstance(p, DTensor) == is_split] for is_split in (False, True)]
        optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups if group], lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        model.value.to(accelerator.device)
        # In evaluation mode it is placed and cast, and not wrapped in DDP: gradients are added by `gradient_norm`.
        self.model = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.split = sharded.split(policy)
        self.averaged = ranks.size() if self.split else 1  # by so much FSDP2 divides the sum of gradients

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name."""
        model = self.accelerator.unwrap_model(self.model)
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def start_values_at(self, reward: float) -> None:
        """A PM's zero is arbitrary; with values at 0, an offset of all rewards becomes advantages by place."""
        with torch.no_grad():
            self.accelerator.unwrap_model(self.model).value.bias.fill_(reward)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, the part of the step's loss that this worker's rows make."""
        self.accelerator.backward(loss * self.averaged)

    def gradient_norm(self) -> Tensor:
        """Add up the workers' gradients, and clip them; their norm before that."""
        for parameter in self.trained:
            # In value pretraining only the head has a gradient; FSDP2 has added those of what is split.
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                ranks.add(parameter.grad)
                parameter.grad /= self.averaged
        if self.split:
            return sharded.clip(self.trained, self.max_grad_norm)
        norm: Tensor = self.accelerator.clip_grad_norm_(self.trained, self.max_grad_norm)
        return norm

    def step(self) -> None:
        """One step of the optimiser along the gradient, which is then gone."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """Weights and moments, whole and by name: the same for any number of workers, all of which must call it."""
        moments = {name: self.optimizer.state[p] for name, p in self.named() if p in self.optimizer.state}
        return {
            "trained": {name: sharded.whole(p.detach()).cpu() for name, p in self.named()},
            "optimizer": {
                name: {key: sharded.whole(value).cpu() for key, value in kept.items()} for name, kept in moments.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave, of any number of workers."""
        with torch.no_grad():
            for name, parameter in self.named():
                parameter.copy_(sharded.part(state["trained"][name], parameter))
                for key, value in state["optimizer"].get(name, {}).items():
                    self.optimizer.state[parameter][key] = sharded.part(value, parameter)
