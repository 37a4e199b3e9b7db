"""Our PPO beside TRL 1.12's PPOTrainer (the last TRL that had one), in one run on one machine.

    python benchmarks/ppo_vs_trl.py [--updates 5] [--threads 2] [--only speed|agreement] [--engine both] [--work FOLDER]

TRL gets a virtual environment of its own, made once in the cache folder. Two questions:

1. Speed: samples a second and peak memory of the whole loop (generate, score, optimise) for the same policy
   (SmolLM2-135M-Instruct, full weights, float32), reward model, prompts, answer length, 8 episodes an update, 1 epoch.
   TRL trains a value model of its own, as large as the policy: that is its design, and counts.
2. Agreement: on the same fixed rollouts, what both make of one update. TRL's own `train()` runs, its sampling and
   scoring replaced by the fixed answers and scores. Compared: log-probabilities, KL, returns, advantages before and
   after whitening, losses, and the policy's gradient. All answers are cut at the length limit: for one
   that ends, TRL 1.12 puts the score a place after the end of turn (TRL issue 3750), so there it must differ.

Prints a table, then one JSON line. Exits with 1 where the two disagree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
EPISODES, ANSWER, PROMPT_TOKENS, GAMMA, LAM, KL_COEF = 8, 32, 38, 1.0, 0.95, 0.05
TOLERANCE = {
    "logp": 1e-3,
    "ref_logp": 1e-3,
    "kl": 1e-3,
    "advantages": 1e-3,
    "returns": 1e-3,
    "whitened": 1e-2,  # TRL divides by n - 1, we by n
    "policy_loss": 1e-4,
    "value_loss": 1e-3,
    "gradient": 1e-2,  # follows from the whitening
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=5, help="timed updates, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="default: ppo_vs_trl/ in the cache folder")
    parser.add_argument("--only", choices=["speed", "agreement"])
    parser.add_argument("--engine", choices=["transformers", "vllm", "both"], default="transformers", help="of ours")
    parser.add_argument("--worker", choices=["ours", "ours on vLLM", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=["speed", "agreement"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        import torch

        torch.set_num_threads(args.threads)
        work = {"ours": Ours, "ours on vLLM": OursVllm, "trl": Trl}[args.worker](args.work)
        result = work.speed(args.updates) if args.task == "speed" else work.agreement()
        (args.work / f"{args.worker}-{args.task}.json").write_text(json.dumps(result))
        return 0
    tasks = [args.only] if args.only else ["agreement", "speed"]
    ours = {"transformers": ["ours"], "vllm": ["ours on vLLM"], "both": ["ours", "ours on vLLM"]}[args.engine]
    return compare(args.updates, args.threads, args.work, tasks, ours)


def compare(updates: int, threads: int, work: Path | None, tasks: list[str], ours: list[str]) -> int:
    sys.path.insert(0, str(HERE.parents[1]))
    from harness.models import embedded

    work = work or embedded.cache_folder() / "ppo_vs_trl"
    work.mkdir(parents=True, exist_ok=True)
    trl_python = str(environment(embedded.cache_folder() / "trl-1.12"))
    prepare(work)
    results: dict[str, Any] = {}
    for task in tasks:
        for worker in (*(ours if task == "speed" else ["ours"]), "trl"):
            python = trl_python if worker == "trl" else sys.executable
            command = [python, str(HERE), "--worker", worker, "--task", task, "--work", str(work)]
            command += ["--updates", str(updates), "--threads", str(threads)]
            env = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
                raise SystemExit(f"{worker} {task} failed")
            results[worker, task] = json.loads((work / f"{worker}-{task}.json").read_text())
    line: dict[str, Any] = {"threads": threads}
    if "speed" in tasks:
        trl = results["trl", "speed"]
        print(f"{'':12}{'samples/s':>12}{'s/update':>12}{'peak GiB':>12}")
        for name in (*ours, "trl"):
            r = results[name, "speed"]
            speed, memory = (r[key] / trl[key] for key in ("samples_per_second", "peak_gib"))
            row = f"{name:12}{r['samples_per_second']:12.3f}{r['seconds_per_update']:12.2f}{r['peak_gib']:12.2f}"
            print(f"{row}   {speed:.2f} times TRL's speed at {memory:.2f} of its memory")
            line |= {name: r | {"speed_ratio": speed, "memory_ratio": memory}}
        print()
    if "agreement" in tasks:
        errors = differences(results["ours", "agreement"], results["trl", "agreement"])
        print(f"{'one update':14}{'error':>12}{'allowed':>12}")
        for name, error in errors.items():
            mark = "" if error <= TOLERANCE[name] else "  DISAGREES"
            print(f"{name:14}{error:12.2e}{TOLERANCE[name]:12.0e}{mark}")
        line |= {"agreement": errors, "agree": all(error <= TOLERANCE[name] for name, error in errors.items())}
    print(json.dumps(line))
    return 0 if line.get("agree", True) else 1


def differences(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, float]:
    """Norm of the difference over the larger of TRL's norm and 1 (the gradient: relative), by quantity."""
    import numpy as np

    norm = np.linalg.norm
    floor = {"gradient": 1e-8}
    return {
        name: float(norm(np.subtract(ours[name], trl[name])) / max(norm(trl[name]), floor.get(name, 1.0)))
        for name in TOLERANCE
    }


def environment(folder: Path) -> Path:
    """The Python of TRL's environment; torch first, so that the build which the index offers for it stays."""
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.is_file():
        venv.create(folder, with_pip=True, clear=True)
        for package in ("torch==2.13.0", "trl==1.12.*"):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        ready.touch()
    return python


def prepare(work: Path) -> None:
    """Models, prompts and fixed rollouts that both read. The policy is the reference with its norms disturbed."""
    import numpy as np
    import torch

    from harness.models import chat, checkpoints, embedded, scorer
    from harness.models.transformers import decode

    policy, tokenizer = checkpoints.load_policy(embedded.EMBEDDED, device_name="cpu", dtype=torch.float32)
    reward, _ = scorer.load_classifier(embedded.EMBEDDED, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    reward.score.weight.data.normal_(0, 0.02, generator=generator)
    checkpoints.save(policy, tokenizer, work / "reference")
    checkpoints.save(reward, tokenizer, work / "reward")
    subjects = ["rivers", "bread", "clocks", "violins", "spiders", "glaciers", "bridges", "coffee", "maps"]
    pairs = itertools.pairwise(subjects)
    texts = [f"Tell me three things about {a} and {b} that a curious child would like to hear." for a, b in pairs]
    texts = [text + " Keep it short, and end with a question." for text in texts][:EPISODES]
    ids = [chat.encode_prompt(tokenizer, text) for text in texts]
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
    checkpoints.save(policy, tokenizer, work / "policy")
    answers = decode(
        policy,
        ids,
        max_new_tokens=ANSWER,
        temperature=1.0,
        keys=texts,
        seed=0,
        eos_ids=set(),
        pad_id=tokenizer.pad_token_id,
    )
    # TRL drops what follows an end of turn, and the comparison wants answers that are cut: "." takes its place.
    full_stop = tokenizer(".", add_special_tokens=False)["input_ids"][0]
    special = set(tokenizer.all_special_ids) | {tokenizer.pad_token_id}
    answers = [[full_stop if token in special else token for token in row] for row in answers]
    scores = np.random.default_rng(0).normal(0, 1, len(ids))
    scores -= scores.mean()  # our values start at the mean reward, TRL's at 0
    shared = {"texts": texts, "prompts": ids, "answers": answers, "scores": scores.tolist()}
    (work / "shared.json").write_text(json.dumps(shared))
    print(f"{len(ids)} prompts of {np.mean([len(row) for row in ids]):.0f} tokens, answers of up to {ANSWER}\n")


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def speed_of(stamps: list[float]) -> dict[str, float]:
    """From the ends of updates, the first of which warmed up."""
    seconds = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    return {"samples_per_second": EPISODES / seconds, "seconds_per_update": seconds, "peak_gib": peak_gib()}


class Worker:
    def __init__(self, work: Path):
        self.work = work
        self.shared = json.loads((work / "shared.json").read_text())


class Ours(Worker):
    engine = "transformers"

    def config(self, updates: int) -> Any:
        from pipelines import ppo

        return ppo.PPOConfig(
            updates=updates,
            rollouts_per_update=EPISODES,
            minibatch_size=EPISODES,
            epochs=1,
            max_new_tokens=ANSWER,
            learning_rate=1e-6,
            kl_coef=KL_COEF,
            gamma=GAMMA,
            gae_lambda=LAM,
            max_grad_norm=1e9,
            checkpoint_every=10**6,
        )

    def load(self, name: str) -> tuple[Any, Any]:
        sys.path.insert(0, str(HERE.parents[1]))
        import torch

        from harness.models import checkpoints

        return checkpoints.load_policy(self.work / name, device_name="cpu", dtype=torch.float32)

    def run(self, updates: int, engine: str = "transformers", lora: bool = False) -> Any:
        """A run of our PPO that is ready for its first update."""
        policy, tokenizer = self.load("policy")
        from harness.models import checkpoints, scorer, vllm
        from pipelines import ppo

        if lora:
            policy = checkpoints.add_lora(policy, checkpoints.LoraSettings())
        score = scorer.PreferenceModel.load(self.work / "reward").score
        served = vllm.load(self.work / "policy") if engine == "vllm" else None
        settings = self.config(updates)
        return ppo._Run(policy, tokenizer, self.shared["texts"], score, settings, self.work / "out", served)

    def speed(self, updates: int) -> dict[str, float]:
        stamps: list[float] = []
        run = self.run(updates + 1, self.engine)
        for update in range(1, updates + 2):
            run.update(update)
            stamps.append(time.perf_counter())
        return speed_of(stamps)

    def agreement(self) -> dict[str, Any]:
        policy, tokenizer = self.load("policy")
        reference, _ = self.load("reference")
        import numpy as np
        import torch

        from harness.models import transformers as generation
        from pipelines import ppo

        answers, found = dict(zip(map(tuple, self.shared["prompts"]), self.shared["answers"], strict=True)), {}
        generation.decode = lambda model, ids, **_: [answers[tuple(row)] for row in ids]
        by_text = dict(zip(self.shared["texts"], self.shared["scores"], strict=True))
        run = ppo._Run(
            policy,
            tokenizer,
            self.shared["texts"],
            lambda p, r: np.array([by_text[t] for t in p]),
            self.config(1),
            self.work / "out",
        )
        run.reference = reference
        run.learner.optimizer.step = lambda: found.update(gradient=gradient(policy))
        optimise = run.optimise
        raw: dict[str, Any] = {}
        whiten = ppo.ppo_math.whiten

        def spy(x: Any, mask: Any) -> Any:
            raw["advantages"] = x
            return whiten(x, mask)

        def keep(rollouts: Any, update: int) -> Any:
            order = np.argsort([list(map(tuple, self.shared["prompts"])).index(tuple(row)) for row in rollouts.prompts])
            tensors = {"logp": rollouts.logp, "ref_logp": rollouts.ref_logp, "returns": rollouts.returns}
            tensors |= {"whitened": rollouts.advantages, "advantages": raw["advantages"]}
            found.update({name: x[torch.tensor(order)].tolist() for name, x in tensors.items()})
            return optimise(rollouts, update)

        ppo.ppo_math.whiten, run.optimise = spy, keep
        row = run.update(1)
        return found | {"kl": row["kl"], "policy_loss": row["policy_loss"], "value_loss": row["value_loss"]}


class OursVllm(Ours):
    engine = "vllm"


class Trl(Worker):
    def trainer(self, updates: int) -> tuple[Any, list[float]]:
        import torch
        from datasets import Dataset
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
            AutoTokenizer,
            TrainerCallback,
        )
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        tokenizer = AutoTokenizer.from_pretrained(self.work / "policy", padding_side="left")
        load = AutoModelForCausalLM.from_pretrained
        lm = {n: load(self.work / n, dtype=torch.float32) for n in ("policy", "reference")}
        read = AutoModelForSequenceClassification.from_pretrained
        heads = [read(self.work / "reward", num_labels=1, dtype=torch.float32) for _ in range(2)]
        torch.nn.init.zeros_(heads[1].score.weight)  # as our value head: 0 at the start
        config = PPOConfig(
            output_dir=str(self.work / "trl-out"),
            total_episodes=EPISODES * updates,
            per_device_train_batch_size=EPISODES,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=1,
            response_length=ANSWER,
            temperature=1.0,
            stop_token="eos",
            kl_coef=KL_COEF,
            gamma=GAMMA,
            lam=LAM,
            learning_rate=1e-6,
            num_sample_generations=0,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        stamps: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                stamps.append(time.perf_counter())

        data = Dataset.from_list([{"input_ids": ids} for ids in self.shared["prompts"]])
        job = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=lm["policy"],
            ref_model=lm["reference"],
            reward_model=heads[0],
            value_model=heads[1],
            train_dataset=data,
            callbacks=[Clock()],
        )
        return job, stamps

    def speed(self, updates: int) -> dict[str, float]:
        job, stamps = self.trainer(updates + 1)
        job.train()
        return speed_of(stamps)

    def agreement(self) -> dict[str, Any]:
        import torch
        from trl.experimental.ppo import ppo_trainer as module

        job, _ = self.trainer(1)
        found: dict[str, Any] = {}
        rows = {tuple(p): i for i, p in enumerate(self.shared["prompts"])}
        order: list[int] = []
        pad = job.processing_class.pad_token_id

        def fixed(model: Any, queries: Any, _: int, pad_id: int, __: Any) -> tuple[Any, Any]:
            order[:] = [rows[tuple(t for t in q if t != pad)] for q in queries.tolist()]
            answers = torch.tensor([self.shared["answers"][i] for i in order])
            both = torch.cat([queries, answers], 1)
            with torch.no_grad():
                return both, module.forward(model, both, pad_id).logits[:, queries.shape[1] - 1 : -1]

        get_reward, log_softmax, whiten = module.get_reward, module.selective_log_softmax, module.masked_whiten

        def scored(model: Any, *args: Any) -> Any:
            values, scores, lengths = get_reward(model, *args)
            if model is job.reward_model:
                scores = torch.tensor([self.shared["scores"][i] for i in order])
            return values, scores, lengths

        def in_order(x: Any) -> Any:
            return x[torch.tensor(order).argsort()].tolist()

        def logged(logits: Any, ids: Any) -> Any:
            out = log_softmax(logits, ids)
            name = "logp" if "logp" not in found else "ref_logp"
            found.setdefault(name, in_order(out.detach()))
            return out

        def whitened(x: Any, mask: Any, **kwargs: Any) -> Any:
            out = whiten(x, mask, **kwargs)
            # Values are 0 at the start, so advantages before whitening are the returns too.
            found.update(advantages=in_order(x), returns=in_order(x), whitened=in_order(out))
            return out

        module.batch_generation, module.get_reward = fixed, scored
        module.selective_log_softmax, module.masked_whiten = logged, whitened
        metrics: dict[str, float] = {}
        job.log = metrics.update
        step = job.optimizer.step
        job.optimizer.step = lambda: (found.update(gradient=gradient(job.policy_model)), step())
        job.train()
        names = {"kl": "objective/kl", "policy_loss": "loss/policy_avg", "value_loss": "loss/value_avg"}
        return found | {name: metrics[key] for name, key in names.items()}


def gradient(policy: Any) -> list[float]:
    """The policy's gradient at 20 000 places, the same for both sides."""
    import torch

    flat = torch.cat([p.grad.flatten() for _, p in sorted(policy.named_parameters())])
    places = torch.randint(len(flat), (20_000,), generator=torch.Generator().manual_seed(0))
    return flat[places].tolist()


if __name__ == "__main__":
    sys.exit(main())
