"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from harness import cli
from harness.files import read_jsonl
from harness.hh_layout import SHIPPED
from tests.fake_server import FakeServer, Reply, Serve

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A machine that is busy must fail no test; what must be fast is measured in benchmarks/.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

OWN_DATA = Path(__file__).with_name("data")
# The public files of other projects, in the layout of tests/data. They are never committed, so most machines lack them.
_NAMED = os.environ.get("CAI_REFERENCE_DATA")
REFERENCE_DATA = Path(_NAMED) if _NAMED else Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever uses `reference_data`; skip all that is marked where there are no such files."""
    if _NAMED and not REFERENCE_DATA.is_dir():
        raise pytest.UsageError(f"CAI_REFERENCE_DATA: {_NAMED} is not a folder")
    for item in items:
        if "reference_data" in getattr(item, "fixturenames", ()):
            item.add_marker("reference")
        if "reference" in item.keywords and not REFERENCE_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason="no reference data: set CAI_REFERENCE_DATA to its folder"))


@pytest.fixture(scope="session")
def own_data() -> Path:
    """Small files of our own in every outside format that the project reads."""
    return OWN_DATA


@pytest.fixture(scope="session")
def reference_data() -> Path:
    return REFERENCE_DATA


@pytest.fixture(scope="session", params=["own", pytest.param("reference", marks=pytest.mark.reference)])
def outside_data(request: pytest.FixtureRequest) -> Path:
    """Both of them in turn, for what must hold of any file in these formats."""
    return {"own": OWN_DATA, "reference": REFERENCE_DATA}[request.param]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model, saved once."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(folder)
    return folder


def save_tiny_model(folder: Path) -> None:
    """A real, random Llama of 2 layers with a byte-level tokenizer whose pad token is its end of turn, as SmolLM2's."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [row["prompt"] for name in ("redteam", "helpful") for row in read_jsonl(SHIPPED / f"{name}.jsonl")]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        head_dim=32,  # the smallest that vLLM reads on a CPU
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---------------------------------------------------------------- the command line, and a run of a tiny model

TINY = """
name: tiny
models: {{base: {model}}}
scale: {{redteam_prompts: 6, helpful_prompts: 6, heldout_prompts: 6, preference_pairs: 8, gold_pairs: 8,
        max_new_tokens: 8, batch_size: 8}}
lora: {{rank: 4, alpha: 8, top_layers: 1}}
pm: {{epochs: 1, variants: [hard, one_principle]}}
rl: {{updates: 2, rollouts_per_update: 4, minibatch_size: 4, snapshots: 1}}
revise: {{also_direct: true, also_principles: [2]}}
report_to: none
"""


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `cai` with arguments: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cai", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        call.said = captured.err  # type: ignore[attr-defined]  # whole, with what follows left out
        # Without a terminal, progress is a line a stage or suite: no error.
        errors = [line for line in captured.err.splitlines(True) if not re.match(r"\[\d+/\d+\] ", line)]
        return code, captured.out, "".join(errors)

    return call


@pytest.fixture(scope="session")
def tiny_experiment(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    file.write_text(TINY.format(model=tiny_model))
    return file


@pytest.fixture(scope="session")
def tiny_run(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all six arms and the four suites, on the tiny model."""
    from harness.cli.run import run

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(tiny_experiment, folder)
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[FakeServer] = []

    def start(reply: Callable[[int, dict[str, Any]], Reply]) -> FakeServer:
        started.append(FakeServer(reply))
        return started[-1]

    yield start
    for fake in started:
        fake.http.shutdown()
        fake.http.server_close()
