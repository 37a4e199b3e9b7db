"""What another RL trainer needs to train an arm of a run, where its policy is past what this design carries.

OpenRLHF and verl read the same: the policy to start from and the PM as plain checkpoints, and prompts as messages. The
PM and the policy write texts as this project does (`harness.models.outside`), so that the reward is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness import manifest, store
from harness.errors import UserError
from harness.models import chat
from pipelines import artefacts


def write(run: Path, stage: Path, folder: Path) -> int:
    """Fill `folder` with policy/, reward_model/, prompts.parquet, heldout.parquet and a README; the number of prompts.

    stage: the folder in which RL trained the arm. Raises UserError where it learned without prompts and a PM.
    """
    from harness.models import outside

    about = manifest.read(stage) or {}
    settings = about.get("settings", {})
    inputs = {role: run / entry["folder"] for role, entry in about.get("inputs", {}).items()}
    if "pm" not in inputs or "prompts" not in settings:
        raise UserError(
            f"{stage.parent.name}: not trained by RL on prompts against a PM; give an arm that was, such as rl_cai"
        )
    prompts = artefacts.prompts_in(inputs, settings["prompts"], uses=("chains", "rl"))
    held_out = pd.read_parquet(inputs["data"] / "prompts.parquet")
    held_out = held_out[(held_out["split"] == "heldout") & held_out["kind"].isin(settings["prompts"])]
    store.write_table(folder / "prompts.parquet", _rows(prompts, "train"))
    store.write_table(folder / "heldout.parquet", _rows(list(held_out["prompt"]), "test"))
    start = inputs["policy"] / "model" if "policy" in inputs else about["models"]["base"]["name"]
    outside.merged(start, folder / "policy")
    outside.merged(inputs["pm"] / "model", folder / "reward_model")
    store.write_text(folder / "README.md", _readme(stage.parent.name, settings, len(prompts)))
    return len(prompts)


def _rows(prompts: Sequence[str], split: str) -> pd.DataFrame:
    """One row a prompt, as messages; the other columns are those that verl asks for."""
    return pd.DataFrame(
        {
            "prompt": [chat.parse(prompt) for prompt in prompts],
            "data_source": "cai-harness",
            "ability": "dialogue",
            "reward_model": [{"style": "model", "ground_truth": ""} for _ in prompts],
            "extra_info": [{"index": index, "split": split} for index in range(len(prompts))],
        }
    )


_README = """# {arm}, to be trained elsewhere
Written by `cai export --rl`. `policy/` is where RL starts and the KL's reference, `reward_model/` its PM (a sequence
classifier with one output), `prompts.parquet` holds the {n} prompts that it trains on and `heldout.parquet` those that
it must not see. In the run the arm was trained by {algorithm} with these settings:

| setting | value |
|---|---|
{settings}
The commands carry over what both programs have under another name; devices, lengths and micro-batches are yours to
choose. Both put the KL penalty on every token, as the run does. Neither knows `rl.reward_normalisation`, and OpenRLHF
clips rewards to [-10, 10].

```sh
python -m openrlhf.cli.train_ppo_ray --actor.model_name_or_path policy --reward.model_name_or_path reward_model \\
  --critic.model_name_or_path reward_model --data.prompt_dataset prompts.parquet --data.input_key prompt \\
  --data.apply_chat_template --algo.advantage.estimator gae --algo.advantage.lambd 0.95 \\
  --algo.kl.init_coef {kl_coef} --actor.adam.lr {learning_rate} --critic.adam.lr {learning_rate} \\
  --rollout.batch_size {rollouts} --train.batch_size {step} --train.max_epochs {epochs} \\
  --rollout.max_new_tokens {new_tokens} --ckpt.output_dir trained
```

```sh
python -m verl.trainer.main_ppo data.train_files=prompts.parquet data.val_files=heldout.parquet \\
  actor_rollout_ref.model.path=policy critic.model.path=policy reward.reward_model.enable=True \\
  reward.reward_model.model_path=reward_model algorithm.adv_estimator=gae algorithm.lam=0.95 \\
  algorithm.use_kl_in_reward=True algorithm.kl_ctrl.kl_coef={kl_coef} critic.optim.lr={learning_rate} \\
  actor_rollout_ref.actor.optim.lr={learning_rate} actor_rollout_ref.actor.ppo_epochs={epochs} \\
  data.train_batch_size={rollouts} actor_rollout_ref.actor.ppo_mini_batch_size={step} \\
  actor_rollout_ref.rollout.name=vllm reward.reward_model.rollout.name=vllm data.max_response_length={new_tokens} \\
  trainer.total_training_steps={updates}
```

Then `cai compare RUN:ARM CHECKPOINT` judges what came back against an arm of the run.
"""


def _readme(arm: str, settings: Mapping[str, Any], n: int) -> str:
    shown = {key: value for key, value in settings.items() if key.startswith(("rl.", "lora.")) or key == "seed"}
    names = ("rl.algorithm", "rl.kl_coef", "rl.learning_rate", "rl.updates", "rl.rollouts_per_update", "rl.epochs")
    algorithm, kl_coef, learning_rate, updates, rollouts, epochs = (settings[name] for name in names)
    return _README.format(
        arm=arm,
        n=n,
        settings="".join(f"| `{key}` | {value} |\n" for key, value in shown.items()),
        algorithm=algorithm.upper(),
        kl_coef=kl_coef,
        learning_rate=learning_rate,
        updates=updates,
        rollouts=rollouts,
        step=settings["rl.minibatch_size"] * settings["rl.gradient_accumulation"],
        epochs=epochs,
        new_tokens=settings["scale.max_new_tokens"],
    )
