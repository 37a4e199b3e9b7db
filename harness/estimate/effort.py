"""The work of a stage in physical units: FLOP of passes, decoding steps, optimiser steps, bytes of checkpoints.

A forward pass takes 2 FLOP a parameter and token, a backward pass the same for activations and once more for weights
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1); attention over the context adds little at these lengths and is
left out. A decoding step reads all weights once, however many rows share it, and each row's own keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.experiment import Lora

WIDTH_PER_LAYER = 128  # of models known by their size alone, as in Askell et al. 2021 (arXiv:2112.00861, Table 4)
VOCABULARY = 50_000  # of such models
STATE = 16  # bytes a trained weight: itself, its gradient and Adam's two moments, in float32
ACTIVATIONS = 34  # bytes a token, layer and unit of width in 16 bits (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2)
LOGITS = 12  # bytes a logit in training: itself, its softmax and its gradient in float32


@dataclass(frozen=True)
class Shape:
    """A model's sizes: parameters of the blocks, of the output layer; key and value width of one layer."""

    body: float
    head: float
    layers: int
    hidden: int
    kv: int
    vocabulary: int

    @property
    def parameters(self) -> float:
        return self.body + self.head

    @classmethod
    def of_size(cls, parameters: float) -> Shape:
        """Of a dense transformer known by its number of parameters alone, 12 layers x hidden^2 of them in blocks."""
        hidden = round((parameters * WIDTH_PER_LAYER / 12) ** (1 / 3))
        layers = max(1, round(hidden / WIDTH_PER_LAYER))
        return cls(parameters, VOCABULARY * hidden, layers, hidden, 2 * hidden, VOCABULARY)

    def adapters(self, lora: Lora | None) -> float:
        """Parameters of low-rank adapters; 0 without."""
        return 0.0 if lora is None else self.body * 2 * lora.rank / self.hidden * self.trained_share(lora)

    def trained_share(self, lora: Lora | None) -> float:
        """Share of the blocks through which gradients go."""
        return min(1.0, lora.top_layers / self.layers) if lora and lora.top_layers else 1.0


@dataclass(frozen=True)
class Reading:
    """Forward passes of `flop` in all by a model of so many parameters; `rows` at most are read at once."""

    flop: float
    rows: float
    parameters: float


@dataclass(frozen=True)
class Sampling:
    """`rows` answers of `tokens` tokens, at most `at_once` in a batch, `times` one after the other.

    context: tokens whose keys and values each step reads, on average. What is read before an answer is a Reading.
    """

    shape: Shape
    rows: int
    tokens: int
    at_once: int
    context: float
    times: int = 1


@dataclass(frozen=True)
class Training:
    """Optimiser `steps` of `rows` each, `flop` in all; `exchanged` parameters' gradients go between workers a step.

    state: bytes of weights, gradients and moments; active: bytes of what the rows in memory at once leave for the
    backward pass. Workers share both.
    """

    flop: float
    steps: int
    rows: int
    exchanged: float
    state: float
    active: float


@dataclass(frozen=True)
class Effort:
    """The work of one stage.

    tokens: read and written, as manifests count them. moved: bytes of checkpoints loaded and saved. opened: models
    opened. beside: bytes of models that are held all along beside the one that works, in float32.
    """

    tokens: float = 0
    parts: tuple[Reading | Sampling | Training, ...] = ()
    moved: float = 0
    opened: int = 0
    beside: float = 0

    def __add__(self, other: Effort) -> Effort:
        """Both, one after the other."""
        return Effort(
            self.tokens + other.tokens,
            self.parts + other.parts,
            self.moved + other.moved,
            self.opened + other.opened,
            max(self.beside, other.beside),
        )

    def times(self, n: int) -> Effort:
        """The same n times, one after the other."""
        return sum((self for _ in range(n - 1)), self) if n else Effort()


def opened(shape: Shape, n: int = 1) -> Effort:
    """Loading or saving a model n times; files hold float32."""
    return Effort(moved=4 * shape.parameters * n, opened=n)


def read(shape: Shape, rows: float, tokens: float, *, logits: float = 0) -> Effort:
    """A forward pass over `rows` of `tokens` each, of which `logits` have their next token's distribution computed."""
    flop = 2 * rows * (tokens * shape.body + logits * shape.head)
    return Effort(rows * tokens, (Reading(flop, rows, shape.parameters),))


def sample(shape: Shape, rows: int, tokens: int, at_once: int, prompt: float, *, shared: float = 0) -> Effort:
    """Answers of `tokens` tokens to prompts of `prompt` tokens, before which `shared` ones are read once a batch."""
    batches = -(-rows // at_once)
    before = read(shape, rows, prompt, logits=1) + read(shape, batches, shared)
    said = Sampling(shape, rows, tokens, at_once, prompt + shared + tokens / 2)
    return before + Effort(rows * tokens, (said,))


def train(
    shape: Shape, rows: float, tokens: float, step: int, lora: Lora | None, *, logits: float = 0, at_once: int = 0
) -> Effort:
    """Training passes over `rows` of `tokens` each in optimiser steps of `step` rows, `at_once` (0: all) in memory."""
    share = shape.trained_share(lora)
    # Activations' gradients reach the lowest trained block; weights' gradients are there for full weights alone.
    body, head = (1 + share, 2) if lora is not None else (3, 3)
    flop = 2 * rows * (tokens * shape.body * body + logits * shape.head * head)
    exchanged = shape.parameters if lora is None else shape.adapters(lora)
    state = STATE * exchanged + (4 * shape.parameters if lora is not None else 0)
    active = (at_once or step) * (
        tokens * shape.layers * share * shape.hidden * ACTIVATIONS * 2 + logits * shape.vocabulary * LOGITS
    )
    steps = max(1, round(rows / step))
    return Effort(rows * tokens, (Training(flop, steps, step, exchanged, state, active),))


def of_config(config: Any) -> Shape:
    """The shape of a Hugging Face config; its blocks are counted on the meta device, without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    every = sum(p.numel() for p in model.parameters())
    embeddings = table.numel() + (head.numel() if head is not table else 0)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        every - embeddings, head.numel(), text.num_hidden_layers, text.hidden_size, 2 * heads * width, len(table)
    )
