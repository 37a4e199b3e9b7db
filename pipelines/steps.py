"""The stages' functions: each reads its inputs' artefacts, calls one method, and writes its own artefacts.

The methods are imported where they are called, so that a plan loads no torch. Artefacts: `model/` a checkpoint,
`snapshots/step-*/` checkpoints along RL, `*.parquet` tables, `*.json` numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from constitutions import Constitution
from harness import data, store
from harness.experiment import Data, Feedback, Lora, Pm, Revise, Rl, Scale, Sft
from harness.stages import Work

if TYPE_CHECKING:
    from harness.generation import Generator
    from harness.models import PreferenceModel

Rows = list[dict[str, Any]]


def select_data(work: Work) -> None:
    """Draw the run's prompts and human labels: prompts.parquet, preferences.parquet."""
    config = work.config
    prompts, preferences, notes = data.select(Data(**config["data"]), Scale(**config["scale"]), config["seed"])
    store.write_table(work.folder / "prompts.parquet", prompts)
    store.write_table(work.folder / "preferences.parquet", preferences)
    store.write_json(work.folder / "notes.json", notes)


def train_pm(work: Work) -> None:
    """A PM on human labels of config['human'] kinds and split, and on AI labels where there are any."""
    from pipelines import preference_model

    config = work.config
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    of_kind = preferences[preferences["kind"].isin(config["human"])]
    pairs = of_kind[of_kind["split"] == config["split"]].assign(p=1.0)[preference_model.PAIRS]
    if "labels" in work.inputs:
        labels = pd.read_parquet(work.inputs["labels"] / "feedback.parquet")
        pairs = pd.concat([pairs, ai_pairs(labels, hard=config["hard"])], ignore_index=True)
    base = work.config["base"]
    work.tokens += preference_model.train(
        base,
        pairs,
        work.folder,
        Pm(**config["pm"]),
        lora=_lora(config),
        seed=config["seed"],
        report_to=config["report_to"],
        progress=work.progress,
    )
    pm = load_pm(work.folder, config)
    for kind in config["measured_on"]:
        heldout = preferences[(preferences["kind"] == kind) & (preferences["split"] == "heldout")]
        evaluated = preference_model.evaluate(pm, heldout)
        store.write_table(work.folder / f"heldout-{kind}.parquet", evaluated)
        store.write_json(work.folder / f"quality-{kind}.json", preference_model.quality(evaluated))


def ai_pairs(labels: pd.DataFrame, *, hard: bool) -> pd.DataFrame:
    """AI labels as preference pairs; with `hard`, rounded to 0 or 1. Pairs of equal answers say nothing."""
    distinct = labels[labels["response_a"] != labels["response_b"]]
    p = (distinct["p_a"] > 0.5).astype(float) if hard else distinct["p_a"]
    columns = {"prompt": distinct["prompt"], "chosen": distinct["response_a"], "rejected": distinct["response_b"]}
    return pd.DataFrame(columns | {"p": p})


def train_rl(work: Work) -> None:
    """RL from the input policy (or the base model) against the input PM, on train prompts of some kinds."""
    from pipelines import rl

    config = work.config
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    chosen = rows[(rows["split"] == "train") & rows["kind"].isin(config["prompts"])]
    start = work.inputs["policy"] / "model" if "policy" in work.inputs else config["base"]
    log = rl.train(
        start,
        chosen["prompt"].tolist(),
        load_pm(work.inputs["pm"], config),
        work.folder,
        Rl(**config["rl"]),
        Scale(**config["scale"]),
        arm=config["arm"],
        lora=_lora(config),
        seed=config["seed"],
        report_to=config["report_to"],
        progress=work.progress,
    )
    work.tokens += int(log.attrs.get("tokens", 0))
    store.write_table(work.folder / "training.parquet", log.assign(arm=config["arm"]))


def train_dpo(work: Work) -> None:
    """DPO from the input policy on the pairs that a PM would have been trained on: human labels and AI labels."""
    from pipelines import preference_model, rl

    config = work.config
    preferences = pd.read_parquet(work.inputs["data"] / "preferences.parquet")
    of_kind = preferences[preferences["kind"].isin(config["human"])]
    pairs = of_kind[of_kind["split"] == "train"].assign(p=1.0)[preference_model.PAIRS]
    if "labels" in work.inputs:
        labels = pd.read_parquet(work.inputs["labels"] / "feedback.parquet")
        pairs = pd.concat([pairs, ai_pairs(labels, hard=False)], ignore_index=True)
    start = work.inputs["policy"] / "model" if "policy" in work.inputs else config["base"]
    log = rl.train_dpo(
        start,
        pairs,
        work.folder,
        Rl(**config["rl"]),
        arm=config["arm"],
        lora=_lora(config),
        max_length=config["pm"]["max_length"],
        seed=config["seed"],
        report_to=config["report_to"],
        progress=work.progress,
    )
    store.write_table(work.folder / "training.parquet", log.assign(arm=config["arm"]))


def revise(work: Work) -> None:
    """Critique-revision chains of the input policy on the red-team prompts: chains.parquet."""
    from pipelines import critique_revise

    config, settings = work.config, Revise(**work.config["revise"])
    generator = load_generator(work)
    constitution = Constitution.model_validate(config["constitution"])
    prompts = _prompts(work, "harmless")

    def remaining(todo: list[str], keep: Callable[[Rows], None]) -> None:
        critique_revise.run(
            generator,
            constitution,
            todo,
            arm=config["arm"],
            rounds=settings.rounds,
            critique=config["critique"],
            max_new_tokens=config["scale"]["max_new_tokens"],
            temperature=settings.temperature,
            seed=config["seed"],
            shots=settings.few_shot,
            principles=config["principles"],
            on_batch=keep,
        )

    rows = _resumed(work, prompts, remaining, "chains")
    table = pd.DataFrame(rows, columns=critique_revise.COLUMNS)
    store.write_table(work.folder / "chains.parquet", _as_asked(table, prompts).sort_values("revision", kind="stable"))
    work.tokens += generator.tokens


def respond(work: Work) -> None:
    """config['samples'] responses of the input policy to each train prompt of a kind: responses.parquet."""
    config = work.config
    generator = load_generator(work)
    prompts = _prompts(work, config["kind"])
    numbered = [(prompt, sample) for prompt in prompts for sample in range(config["samples"])]

    def remaining(todo: list[str], keep: Callable[[Rows], None]) -> None:
        asked = [(p, s) for p, s in numbered if p in set(todo)]

        def store_batch(index: list[int], texts: list[str]) -> None:
            keep(
                [
                    {"prompt": asked[i][0], "sample": asked[i][1], "response": t}
                    for i, t in zip(index, texts, strict=True)
                ]
            )

        generator.sample(
            [p for p, _ in asked],
            max_new_tokens=config["scale"]["max_new_tokens"],
            temperature=1.0,
            seed=config["seed"],
            keys=[f"{p}/{s}" for p, s in asked],
            on_batch=store_batch,
        )

    rows = _resumed(work, prompts, remaining, "responses", per_prompt=config["samples"])
    table = _as_asked(pd.DataFrame(rows, columns=["prompt", "sample", "response"]), prompts)
    store.write_table(work.folder / "responses.parquet", table)
    work.tokens += generator.tokens


def finetune(work: Work) -> None:
    """SL-CAI: the pretrained model on revisions and helpful-only answers."""
    from pipelines import sft

    config = work.config
    chains = pd.read_parquet(work.inputs["chains"] / "chains.parquet")
    helpful = pd.read_parquet(work.inputs["helpful"] / "responses.parquet")
    settings = Sft(**config["sft"])
    examples = sft.demonstrations(chains, helpful, train_on=settings.train_on, seed=config["seed"])
    store.write_table(work.folder / "demonstrations.parquet", examples)
    work.tokens += sft.train(
        config["base"],
        examples,
        work.folder,
        settings,
        lora=_lora(config),
        max_length=config["scale"]["max_prompt_tokens"] + config["scale"]["max_new_tokens"],
        seed=config["seed"],
        report_to=config["report_to"],
        progress=work.progress,
    )


def label_pairs(work: Work) -> None:
    """AI labels on the two SL-CAI answers to each red-team prompt: feedback.parquet, feedback.json."""
    from harness.server import feedback_model
    from pipelines import ai_feedback

    config, settings = work.config, Feedback(**work.config["feedback"])
    generator = feedback_model(config["base"], config["scale"]["batch_size"])
    answers = pd.read_parquet(work.inputs["responses"] / "responses.parquet")
    wide = answers.pivot(index="prompt", columns="sample", values="response").loc[answers["prompt"].unique()]
    pairs = pd.DataFrame({"prompt": wide.index, "response_a": wide[0].to_numpy(), "response_b": wide[1].to_numpy()})
    prompts = pairs["prompt"].tolist()
    constitution = Constitution.model_validate(config["constitution"])

    def remaining(todo: list[str], keep: Callable[[Rows], None]) -> None:
        ai_feedback.label(
            generator,
            constitution,
            pairs[pairs["prompt"].isin(todo)],
            cot=config["cot"],
            clamp=settings.clamp,
            cot_tokens=settings.cot_tokens,
            seed=config["seed"],
            shots=settings.few_shot,
            one_principle=config["one_principle"],
            on_batch=keep,
        )

    rows = _resumed(work, prompts, remaining, "labels")
    labels = _as_asked(pd.DataFrame(rows, columns=ai_feedback.COLUMNS), prompts)
    store.write_table(work.folder / "feedback.parquet", labels)
    store.write_json(work.folder / "feedback.json", ai_feedback.report(labels))
    work.tokens += generator.tokens


def load_generator(work: Work) -> Generator:
    """The input policy, or the model that config['base'] names, ready to sample."""
    from harness.generation import Generator
    from harness.models import load_policy

    start = work.inputs["policy"] / "model" if "policy" in work.inputs else work.config["base"]
    policy, tokenizer = load_policy(start)
    return Generator(policy, tokenizer, work.config["scale"]["batch_size"])


def load_pm(folder: Path, config: Any) -> PreferenceModel:
    """The PM that a stage left in `folder`."""
    from harness.models import PreferenceModel

    batch, length = config["scale"]["batch_size"], config["pm"]["max_length"]
    return PreferenceModel.load(folder / "model", batch_size=batch, max_length=length)


def _lora(config: Any) -> Lora | None:
    return Lora(**config["lora"]) if config["lora"] is not None else None


def _prompts(work: Work, kind: str) -> list[str]:
    rows = pd.read_parquet(work.inputs["data"] / "prompts.parquet")
    return list(rows.loc[(rows["split"] == "train") & (rows["kind"] == kind), "prompt"])


def _resumed(
    work: Work,
    prompts: list[str],
    remaining: Callable[[list[str], Callable[[Rows], None]], None],
    note: str,
    *,
    per_prompt: int | None = None,
) -> Rows:
    """All rows of a stage that works prompt by prompt, what an earlier try stored taken from `done.jsonl`.

    `per_prompt` is the number of rows that make a prompt whole, where its rows may come in different batches.
    """
    path = work.folder / "done.jsonl"
    rows = store.read_jsonl(path, partial_end=True) if path.is_file() else []
    if per_prompt is not None:
        counts = pd.Series([row["prompt"] for row in rows], dtype=object).value_counts()
        rows = [row for row in rows if counts[row["prompt"]] == per_prompt]
    path.write_text("", encoding="utf-8")  # a line cut short by a kill must not stand before new ones
    store.append_jsonl(path, rows)
    finished = {row["prompt"] for row in rows}

    def keep(batch: Rows) -> None:
        store.append_jsonl(path, batch)
        rows.extend(batch)
        work.progress.advance(len({row["prompt"] for row in rows}), len(prompts), note)

    todo = [prompt for prompt in prompts if prompt not in finished]
    if todo:
        remaining(todo, keep)
    path.unlink()
    return rows


def _as_asked(table: pd.DataFrame, prompts: list[str]) -> pd.DataFrame:
    """Rows in the order of `prompts`, whatever batches they came in, so that a resumed stage writes the same file."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    keys = [c for c in ("sample", "revision") if c in table]
    return (
        table.assign(_place=table["prompt"].map(place))
        .sort_values(["_place", *keys], kind="stable")
        .drop(columns="_place")
        .reset_index(drop=True)
    )
