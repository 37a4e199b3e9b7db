"""`cai plan --estimate`: what a run will take, as a table, as Markdown for documents, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from harness.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.estimate.forecast import Cost
    from harness.estimate.rates import Rates
    from harness.experiment import Experiment
    from harness.graph import Planned


@dataclass(frozen=True)
class Asked:
    """The options of `cai plan` that belong to --estimate."""

    gpus: str
    rates: Sequence[str]
    price: float | None
    parameters: str | None
    markdown: bool
    as_json: bool

    def check(self, estimate: bool) -> None:
        """Raises UserError for options without --estimate, and for numbers that mean nothing."""
        own = self.rates or self.price is not None or self.parameters or self.gpus != "1" or self.markdown
        if own and not estimate:
            raise UserError("--gpus, --rate, --price, --parameters and --markdown belong to --estimate; add it")
        if self.as_json and self.markdown:
            raise UserError("--json and --markdown are two formats; leave one out")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise UserError(f"--price {self.price:g}: not the price of a device-hour; give a number of at least 0")
        self.devices()

    def devices(self) -> list[int]:
        """The numbers under --gpus. Raises UserError."""
        words = self.gpus.split(",")
        if not all(word.strip().isdecimal() and 0 < int(word) <= 10**6 for word in words):
            raise UserError(f"--gpus {self.gpus}: give a number from 1 to 1,000,000, or several with commas between")
        return [int(word) for word in words]


def parameters(text: str) -> float:
    """7e9, 7B and 135M as numbers. Raises UserError."""
    factor = {"B": 1e9, "M": 1e6}.get(text[-1:].upper(), 1.0)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError as error:
        raise UserError(f"--parameters {text}: not a size; write 7B, 135M or 7e9") from error
    if not 1e3 <= number <= 1e15:
        raise UserError(f"--parameters {text}: not the size of a model; write 7B, 135M or 7e9")
    return number


@dataclass(frozen=True)
class Forecast:
    """All stages of a run on so many devices; `unknown` are those whose work nobody described."""

    run: str
    gpus: int
    costs: Sequence[Cost]
    kinds: Mapping[str, str]  # by stage: the file of its function
    todo: Sequence[str]
    path: Sequence[str]
    path_seconds: float
    unknown: Sequence[str]
    notes: Sequence[str]

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)

    @property
    def left(self) -> float:
        return sum(cost.seconds for cost in self.costs if cost.stage in self.todo)

    @property
    def hours(self) -> float:
        """Device-hours, of the devices that each stage can use."""
        return sum(cost.seconds * cost.devices for cost in self.costs) / 3600

    @property
    def at_once(self) -> float:
        """Seconds that no schedule goes below: of the critical path, and of all devices busy all along."""
        return max(self.path_seconds, 3600 * self.hours / self.gpus)


def forecast(
    experiment: Experiment, planned: Sequence[Planned], rates: Rates, gpus: int, size: str | None, run: str
) -> Forecast:
    """What the stages of `planned` will take. Raises UserError where the model's size is not to be had."""
    from harness.estimate import effort, forecast, lengths
    from pipelines import costs as of_arms
    from suites import costs as of_suites

    shape = effort.Shape.of_size(parameters(size)) if size is not None else None
    known = lengths.of(experiment, shape)
    table: dict[Any, Any] = {**of_arms.COSTS, **of_suites.COSTS}
    found, unknown = [], []
    for item in planned:
        stage = item.stage
        describe = of_arms.nothing if stage.place is not None else table.get(stage.function)
        work = describe(stage, known) if describe is not None else None
        if work is None:
            unknown.append(stage.name)
        else:
            found.append(forecast.best(stage.name, work, rates, gpus))
    seconds = {cost.stage: cost.seconds for cost in found}
    path, took = forecast.critical_path([item.stage for item in planned], seconds)
    todo = [item.stage.name for item in planned if item.status != "done"]
    kinds = {item.stage.name: item.stage.function.__module__.rpartition(".")[2] for item in planned}
    notes = list(known.notes)
    notes += [f"not estimated: {name}, whose work is its own" for name in unknown]
    heavy = max(found, key=lambda cost: cost.memory)
    if heavy.memory > rates.memory:
        notes.append(
            f"does not fit: {heavy.stage} needs {heavy.memory / 2**30:,.0f} GiB a device, which has "
            f"{rates.memory / 2**30:,.0f}"
        )
    return Forecast(run, gpus, found, kinds, todo, path, took, unknown, notes)


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.1f} days"


def many(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def rows(found: Forecast, price: float | None) -> list[list[str]]:
    """A row a stage that takes any time, and the total."""
    shown = [cost for cost in found.costs if cost.seconds >= 0.5]
    table = [
        [
            cost.stage + (" *" if cost.stage in found.path else ""),
            many(cost.tokens),
            clock(cost.seconds),
            f"{cost.memory / 2**30:,.1f}",
            *([str(cost.devices)] if found.gpus > 1 else []),
            f"{cost.seconds * cost.devices / 3600:,.2f}",
            *([f"{cost.seconds * cost.devices / 3600 * price:,.2f}"] if price is not None else []),
            *([cost.limit] if found.gpus > 1 else []),
        ]
        for cost in shown
    ]
    total = ["total", many(sum(cost.tokens for cost in found.costs)), clock(found.seconds)]
    total += [f"{max(cost.memory for cost in found.costs) / 2**30:,.1f}"]
    total += [*([""] if found.gpus > 1 else []), f"{found.hours:,.2f}"]
    total += [f"{found.hours * price:,.2f}"] if price is not None else []
    return [*table, [*total, *([""] if found.gpus > 1 else [])]]


def columns(found: Forecast, price: float | None) -> list[str]:
    money, several = ["money"] if price is not None else [], found.gpus > 1
    used, limit = (["devices"], ["limit"]) if several else ([], [])
    return ["stage", "tokens", "time", "GiB each", *used, "device-h", *money, *limit]


def sentences(found: Forecast, rates: Rates) -> list[str]:
    """What stands below the table."""
    left = f"; {clock(found.left)} of it is left to do" if found.left < found.seconds else ""
    said = [
        f"One stage after the other: {clock(found.seconds)}{left}. With stages at once, at best: "
        f"{clock(found.at_once)}; the critical path (*) is {clock(found.path_seconds)}.",
        f"Rates: {rates.source}.",
    ]
    return said + [f"Note: {note}." for note in found.notes]


def show(runs: Sequence[tuple[Experiment, tuple[Path, Sequence[Planned]]]], asked: Asked) -> None:
    """Print a table for each run (an experiment, its folder and its plan) and number of devices, or JSON."""
    from harness.estimate import rates as known

    rates = known.given(asked.rates)
    found = [
        forecast(experiment, planned, rates, gpus, asked.parameters, str(folder))
        for experiment, (folder, planned) in runs
        for gpus in asked.devices()
    ]
    if asked.as_json:
        typer.echo(json.dumps([_as_json(each, rates, asked.price) for each in found], indent=2))
        return
    several = len(asked.devices())
    for place in range(0, len(found), several):
        of_run = found[place : place + several]
        one, names = of_run[0], ", ".join(str(each.gpus) for each in of_run)
        if several == 1:
            head, body, below = columns(one, asked.price), rows(one, asked.price), sentences(one, rates)
        else:
            head, body, below = *compared(of_run, asked.price), notes(of_run, rates)
        size = f" of {asked.parameters}" if asked.parameters else ""
        title = f"{one.run}{size}, {names} device{'' if names == '1' else 's'}"
        _print(title, head, body, below, markdown=asked.markdown)


def compared(found: Sequence[Forecast], price: float | None) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of one run on several numbers of devices, its stages by kind."""
    body = []
    for kind in dict.fromkeys(found[0].kinds.values()):
        parts = [[cost for cost in each.costs if each.kinds[cost.stage] == kind] for each in found]
        if any(sum(cost.seconds for cost in part) >= 1 for part in parts):
            body.append(
                [f"{kind}, {len(parts[0])}", many(sum(cost.tokens for cost in parts[0])), *map(_limited, parts)]
            )
    total = many(sum(cost.tokens for cost in found[0].costs))
    body += [
        ["one after the other", total, *(clock(each.seconds) for each in found)],
        ["with stages at once, at best", "", *(clock(each.at_once) for each in found)],
        ["device-hours", "", *(f"{each.hours:,.0f}" for each in found)],
    ]
    if price is not None:
        body.append(["money", "", *(f"{each.hours * price:,.0f}" for each in found)])
    return ["stages, how many", "tokens", *(str(each.gpus) for each in found)], body


def _limited(costs: Sequence[Cost]) -> str:
    """Their time together; of the longest, the devices that it can use and what limits it."""
    longest = max(costs, key=lambda cost: cost.seconds)
    return f"{clock(sum(cost.seconds for cost in costs))} ({longest.devices}, {longest.limit})"


def notes(found: Sequence[Forecast], rates: Rates) -> list[str]:
    """What stands below a comparison: each note once, with the numbers of devices that it is of."""
    said: dict[str, list[int]] = {}
    for each in found:
        for note in each.notes:
            said.setdefault(note, []).append(each.gpus)
    of = {note: "" if len(n) == len(found) else f"on {' and '.join(map(str, n))}, " for note, n in said.items()}
    return [f"Rates: {rates.source}.", *(f"Note: {of[note]}{note}." for note in said)]


def _print(
    title: str, head: Sequence[str], body: Sequence[Sequence[str]], below: Sequence[str], *, markdown: bool
) -> None:
    from rich.table import Column, Table

    from harness.cli.console import Terminal

    if markdown:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        typer.echo("\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), "", *below, ""]))
        return
    table = Table(
        *(Column(name, justify="right" if place else "left", no_wrap=True) for place, name in enumerate(head)),
        title=title,
        title_justify="left",
    )
    for row in body:
        table.add_row(*row)
    Terminal().print(table)
    for line in below:
        Terminal().print(line)


def _as_json(each: Forecast, rates: Rates, price: float | None) -> dict[str, Any]:
    return {
        "run": each.run,
        "gpus": each.gpus,
        "seconds": each.seconds,
        "seconds_left": each.left,
        "critical_path": list(each.path),
        "critical_path_seconds": each.path_seconds,
        "seconds_at_once": each.at_once,
        "device_hours": each.hours,
        "money": None if price is None else each.hours * price,
        "stages": [asdict(cost) for cost in each.costs],
        "not_estimated": list(each.unknown),
        "notes": list(each.notes),
        "rates": {name: value for name, value in asdict(rates).items() if value != math.inf},
    }
