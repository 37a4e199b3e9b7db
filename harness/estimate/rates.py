"""How fast a machine is, in a few physical rates: measured here (`cai doctor --measure`), shipped, or given by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness import files, store
from harness.errors import UserError
from harness.models import embedded

SHIPPED = Path(__file__).with_name("rates.yaml")


@dataclass(frozen=True)
class Rates:
    """What one device does in a second. `source` says where the numbers are from."""

    source: str
    read: float  # FLOP of forward passes
    train: float  # FLOP of forward and backward passes
    weights: float  # bytes of weights and caches that a decoding step reads
    decode: float  # FLOP of the rows of a decoding step
    disk: float  # bytes of checkpoints loaded or saved
    start: float  # seconds to open a model, whatever its size
    bytes_per_weight: float  # when sampling and scoring
    memory: float  # bytes of a device
    process: float = 0.0  # bytes that a process takes without a model
    node: int = 1  # devices that share a fast link
    link: float = math.inf  # bytes a second between devices of a node
    network: float = math.inf  # the same, for each device, between nodes

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), field.name
            if name == "source":
                continue
            most = math.inf if name in ("link", "network") else sys.float_info.max
            if not (isinstance(value, int | float) and 0 <= value <= most):
                raise UserError(f"--rate {name}: {value!r} is not a finite number of at least 0; give one")
            if name not in ("process", "start") and value == 0:
                raise UserError(f"--rate {name}: 0 would take forever; give a positive number")
        if self.node % 1:
            raise UserError(f"--rate node: {self.node!r} is not a whole number; give one, such as node=8")


MEASURED = {  # what `cai doctor --measure` finds
    "read": "FLOP of forward passes",
    "train": "FLOP of forward and backward passes",
    "weights": "bytes of weights in a decoding step",
    "decode": "FLOP of the rows of a decoding step",
    "disk": "bytes of a checkpoint loaded",
    "start": "(in seconds) opening a model, whatever its size",
}
NAMES = tuple(field.name for field in fields(Rates) if field.name != "source")


def cache_file() -> Path:
    return embedded.cache_folder() / "rates.json"


def measured() -> Rates:
    """What `cai doctor --measure` kept. Raises UserError where it has not been run."""
    file = cache_file()
    if not file.is_file():
        raise UserError(
            "no rates of this machine are known; run `cai doctor --measure` (a minute), or name some: --rate h100"
        )
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Rates(**kept)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not readable ({error}); run `cai doctor --measure` again") from error


def keep(rates: Rates) -> Path:
    """Keep measured rates for later plans; the file."""
    store.write_json(cache_file(), {k: v for k, v in asdict(rates).items() if v != math.inf})
    return cache_file()


def shipped() -> dict[str, Rates]:
    """Rates by name, from published figures of devices."""
    return {name: Rates(**values) for name, values in files.read_yaml(SHIPPED).items()}


def given(words: Sequence[str]) -> Rates:
    """Rates from --rate: a shipped name (none: this machine's, measured), then NAME=NUMBER for what is otherwise.

    Raises UserError for an unknown name and for what is no number.
    """
    known = shipped()
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"--rate {names[1]}: {names[0]} is named already; give one name, and NAME=NUMBER beside it")
    if names and names[0] not in known:
        raise UserError(
            f"--rate {names[0]}: unknown; name one of {', '.join(known)}, or give NAME=NUMBER with one of "
            f"{', '.join(NAMES)}"
        )
    rates, own = known[names[0]] if names else measured(), dict[str, Any]()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            continue
        if name not in NAMES:
            raise UserError(f"--rate {name}: no such rate; choose from {', '.join(NAMES)}")
        try:
            own[name] = float(value)
        except ValueError as error:
            raise UserError(f"--rate {name}: {value!r} is no number; give one, such as {name}=1e12") from error
    if not own:
        return rates
    said = ", ".join(f"{name}={value:g}" for name, value in own.items())
    return replace(rates, **own, source=f"{rates.source}; given: {said}")
