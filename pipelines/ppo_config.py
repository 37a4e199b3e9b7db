"""Settings of a PPO run, and the Accelerator that they ask for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers

from harness.errors import UserError
from harness.models import checkpoints


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
    reward_normalisation: Literal["none", "running", "reference"] = "none"
    value_pretraining: int = 0  # updates of the value head alone, before the first
    gradient_accumulation: int = 1
    checkpoint_every: int = 1
    snapshot_steps: tuple[int, ...] = ()
    seed: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    report_to: str | None = None
    origin: str = ""  # the caller's hash of what the run is made from, the scorer among it; a resumed run has the same

    def __post_init__(self) -> None:
        for name in ("updates", "rollouts_per_update", "minibatch_size", "epochs", "max_new_tokens", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"PPOConfig.{name}: {getattr(self, name)} is not positive; give at least 1")


def accelerator_for(config: PPOConfig, out: Path) -> Accelerator:
    """An Accelerator with its tracker started. Raises UserError for a tracker that is not installed."""
    tracker = config.report_to
    if tracker is not None and tracker not in [str(t) for t in get_available_trackers()]:
        raise UserError(f"report_to: {tracker} is not installed; `pip install {tracker}`, or set report_to: none")
    for shared in (AcceleratorState, GradientState):
        shared._reset_state()  # a trainer before us in this process may have set another precision
    accelerator = Accelerator(
        cpu=checkpoints.device() == "cpu",  # without it, it takes no notice of other workers on CPUs
        mixed_precision=config.mixed_precision,
        log_with=tracker,
        project_dir=out / "tracking",
    )
    if tracker is not None:
        numbers = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str)}
        accelerator.init_trackers("ppo", config=numbers)
    return accelerator
