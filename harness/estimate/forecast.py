"""Efforts at rates: seconds and memory of each stage on so many devices, the whole, and the critical path.

Devices share a stage's rows: copies of the model sample and read, and a model that does not fit on one device is spread
over two, four, ... of them. Trainers share the rows of an optimiser step and, with full weights, the weights (FSDP):
each step gathers them twice and scatters their gradients, which overlaps with the computing; as many devices take part
as help. So a stage stops getting faster where an optimiser step has fewer rows than there are devices ("rows"), where
the exchange takes longer than the computing ("exchange"), or where a decoding step takes as long as reading the weights
("weights").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.estimate.effort import Effort, Sampling, Training
from harness.estimate.rates import Rates
from harness.graph import Stage

NEARLY = 1.1  # a stage takes the fewest devices that make it no slower than so many times the fastest
FULL = 0.7  # of a device's memory that weights of a sampling model may take; the rest is for keys and values
EXCHANGED = 6  # bytes a weight and step: gathered twice and scattered once, in 16 bits


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    devices: how many it runs on. memory: bytes of one of them. limit: what most of its time is spent on, or what keeps
    it from using more devices.
    """

    stage: str
    tokens: float
    seconds: float
    devices: int
    memory: float
    limit: str


def spread(parameters: float, rates: Rates) -> int:
    """How many devices hold one copy of a model that samples or reads: 1, 2, 4, ..."""
    needed = parameters * rates.bytes_per_weight / (FULL * rates.memory)
    return 2 ** max(0, math.ceil(math.log2(needed))) if needed > 0 else 1


def best(name: str, effort: Effort, rates: Rates, devices: int) -> Cost:
    """The cost on as many of `devices` as help: the fewest that are nearly the fastest and have the memory."""
    numbers = sorted({devices, *(2**n for n in range(devices.bit_length()) if 2**n <= devices)})
    tried = [cost(name, effort, rates, n) for n in numbers]
    fitting = [one for one in tried if one.memory <= rates.memory] or tried[-1:]
    fastest = min(one.seconds for one in fitting)
    return next(one for one in fitting if one.seconds <= NEARLY * fastest)


def cost(name: str, effort: Effort, rates: Rates, devices: int = 1) -> Cost:
    """The cost of a stage of that effort, alone on so many devices."""
    files = rates.start * effort.opened + effort.moved / (rates.disk * math.ceil(devices / rates.node))
    spent, memory = {"files": files}, 0.0
    for part in effort.parts:
        if isinstance(part, Training):
            took, limit, held = _training(part, effort.beside, rates, devices)
        elif isinstance(part, Sampling):
            took, limit, held = _sampling(part, rates, devices)
        else:
            copies = min(spread(part.parameters, rates), devices)
            workers = max(1, min(devices, math.floor(part.rows) * copies))
            took, limit = part.flop / (rates.read * workers), "rows" if workers < devices else "computing"
            held = part.parameters * rates.bytes_per_weight / copies
        spent[limit] = spent.get(limit, 0.0) + took
        memory = max(memory, held)
    limit = max(spent, key=lambda word: spent[word])
    return Cost(name, effort.tokens, sum(spent.values()), devices, rates.process + memory, limit)


def _training(part: Training, beside: float, rates: Rates, devices: int) -> tuple[float, str, float]:
    """(seconds, what limits it, bytes of a device) of the number of workers that is fastest and has the memory."""
    most = min(devices, part.rows)
    tried = []
    for workers in sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)}):
        computing = part.flop / (rates.train * workers)
        speed = rates.link if workers <= rates.node else rates.network
        exchange = part.steps * EXCHANGED * part.exchanged / speed if workers > 1 else 0.0
        held = (part.state + part.active + beside) / workers
        lacks = held + rates.process > rates.memory
        tried.append((lacks, max(computing, exchange), exchange > computing, workers, held))
    _, took, exchanging, workers, held = min(tried, key=lambda each: (each[0], each[1]))
    limit = "exchange" if exchanging or workers < most else "rows" if workers < devices else "computing"
    return took, limit, held


def _sampling(part: Sampling, rates: Rates, devices: int) -> tuple[float, str, float]:
    """As `_training`; as many rows at once as a copy's memory has room for."""
    shape = part.shape
    copy = min(spread(shape.parameters, rates), devices)
    replicas = max(1, min(devices // copy, part.rows))
    rows = math.ceil(part.rows / replicas)
    cache = part.context * shape.kv * shape.layers * rates.bytes_per_weight  # bytes a row
    weights = shape.parameters * rates.bytes_per_weight
    at_once = max(1, min(part.at_once, rows, int((copy * (rates.memory - rates.process) - weights) / max(cache, 1.0))))
    steps = part.tokens * math.ceil(rows / at_once)
    reading = steps * weights / (copy * rates.weights)
    computing = part.tokens * rows * (2 * shape.parameters / rates.decode + cache / rates.weights) / copy
    limit = "weights" if reading > computing else "computing"
    return part.times * (reading + computing), limit, (weights + at_once * cache) / copy


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
