"""Efforts at rates: seconds and memory of each stage on so many devices, the whole, and the critical path.

Devices share a stage's rows: replicas of the model sample and read, and a model that does not fit on one device is
spread over two, four, ... of them. Trainers share the rows of an optimiser step and, with full weights, the weights
(FSDP): each step gathers them twice and scatters their gradients, which overlaps with the computing. So a stage stops
getting faster where an optimiser step has fewer rows than there are devices, where the exchange takes longer than the
computing, or where a decoding step is as short as reading the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.estimate.effort import Effort, Reading, Sampling, Training
from harness.estimate.rates import Rates
from harness.graph import Stage

FULL = 0.7  # of a device's memory that weights of a sampling model may take; the rest is for keys and values
EXCHANGED = 6  # bytes a weight and step: gathered twice and scattered once, in 16 bits


@dataclass(frozen=True)
class Cost:
    """What a stage takes. memory: bytes of one device; limit: what keeps it from being faster on more devices."""

    stage: str
    tokens: float
    seconds: float
    memory: float
    limit: str


def spread(parameters: float, rates: Rates) -> int:
    """How many devices hold one copy of a model that samples: 1, 2, 4, ..."""
    needed = parameters * rates.bytes_per_weight / (FULL * rates.memory)
    return 2 ** max(0, math.ceil(math.log2(needed))) if rates.memory < math.inf and needed > 0 else 1


def cost(name: str, effort: Effort, rates: Rates, devices: int = 1) -> Cost:
    """The cost of a stage of that effort, alone on so many devices."""
    seconds, limits = rates.start * effort.opened, dict[str, float]()
    nodes = math.ceil(devices / rates.node)
    seconds += effort.moved / (rates.disk * nodes)
    for part in effort.parts:
        took, limit = _seconds(part, rates, devices)
        seconds += took
        limits[limit] = limits.get(limit, 0.0) + took
    if effort.moved:
        limits["files"] = rates.start * effort.opened + effort.moved / (rates.disk * nodes)
    memory = rates.process + effort.state / devices + effort.working / devices
    limit = max(limits, key=lambda word: limits[word]) if limits else ""
    return Cost(name, effort.tokens, seconds, memory, limit)


def _seconds(part: Reading | Sampling | Training, rates: Rates, devices: int) -> tuple[float, str]:
    """(seconds, what they are spent on)."""
    if isinstance(part, Reading):
        at_once = max(1.0, min(float(devices), part.rows))
        return part.flop / (rates.read * at_once), "rows" if at_once < devices else "computing"
    if isinstance(part, Training):
        workers = min(devices, part.rows)
        computing = part.flop / (rates.train * workers)
        speed = rates.link if workers <= rates.node else rates.network
        exchange = part.steps * EXCHANGED * part.exchanged / speed if workers > 1 else 0.0
        if exchange > computing:
            return exchange, "exchange"
        return computing, "rows" if workers < devices else "computing"
    return _sampling(part, rates, devices)


def _sampling(part: Sampling, rates: Rates, devices: int) -> tuple[float, str]:
    shape = part.shape
    held = min(spread(shape.parameters, rates), devices)
    replicas = max(1, devices // held)
    rows = math.ceil(part.rows / replicas)
    cache = part.context * shape.kv * shape.layers * rates.bytes_per_weight  # bytes a row
    room = held * rates.memory - shape.parameters * rates.bytes_per_weight
    at_once = max(1, min(part.at_once, rows, int(room / max(cache, 1.0)) if room < math.inf else rows))
    steps = part.tokens * math.ceil(rows / at_once)
    weights = steps * shape.parameters * rates.bytes_per_weight / (held * rates.weights)
    each = 2 * shape.parameters / rates.decode + cache / rates.weights
    computing = part.tokens * rows * each / held
    return part.times * (weights + computing), "weights" if weights > computing else "computing"


def critical_path(stages: Sequence[Stage], seconds: Mapping[str, float]) -> tuple[list[str], float]:
    """(names, seconds) of the chain of stages that takes longest, were all others carried out beside it.

    `stages` come in order, inputs first; one without an entry in `seconds` counts as 0.
    """
    longest: dict[str, tuple[float, list[str]]] = {}
    for stage in stages:
        before = max((longest[source.name] for source in stage.inputs.values()), default=(0.0, []))
        longest[stage.name] = (before[0] + seconds.get(stage.name, 0.0), [*before[1], stage.name])
    took, names = max(longest.values(), default=(0.0, []))
    return names, took
