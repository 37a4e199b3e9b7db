"""An exhibit: a figure with its words and its numbers, or what is missing to draw it. Page and report show the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from reports.load import Missing, RunData
from reports.style import LOCK, as_bytes


@dataclass(frozen=True)
class Exhibit:
    """reading: what it says, in a line; alt: what it shows, for who cannot see it; paper: what the paper found there;
    table: the numbers drawn. Without a figure, `missing` says what was not measured and how to measure it."""

    name: str
    title: str
    paper: str
    reading: str = ""
    alt: str = ""
    table: pd.DataFrame | None = None
    figure: Figure | None = None
    missing: Missing | None = None

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG document; drawing it takes a good part of a second."""
        assert self.figure is not None
        return as_bytes(self.figure, "svg").decode("utf-8")

    def png(self) -> bytes:
        assert self.figure is not None
        return as_bytes(self.figure, "png")


Drawn = tuple[Figure, pd.DataFrame, str, str]  # figure, numbers, reading, alt
Draw = Callable[[RunData], Exhibit]


def exhibit(name: str, title: str, paper: str) -> Callable[[Callable[[RunData], Drawn]], Draw]:
    """Make an exhibit of a function that draws, or raises `Missing`."""

    def wrap(function: Callable[[RunData], Drawn]) -> Draw:
        def show(run: RunData) -> Exhibit:
            try:
                with LOCK:
                    figure, table, reading, alt = function(run)
            except Missing as missing:
                return Exhibit(name, title, paper, missing=missing)
            return Exhibit(name, title, paper, reading, alt, table, figure)

        show.__name__, show.__doc__, show.__module__ = function.__name__, function.__doc__, function.__module__
        return show

    return wrap
