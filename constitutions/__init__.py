"""The principles: their schema, a loader, the shipped default, and an importer for the paper's published ones."""

from constitutions.importer import import_paper
from constitutions.loader import dump, load, shipped
from constitutions.schema import (
    ComparisonExample,
    ComparisonPrinciple,
    Constitution,
    CotExample,
    CritiquePrinciple,
    Excerpt,
    FewShot,
)

__all__ = [
    "ComparisonExample",
    "ComparisonPrinciple",
    "Constitution",
    "CotExample",
    "CritiquePrinciple",
    "Excerpt",
    "FewShot",
    "dump",
    "import_paper",
    "load",
    "shipped",
]
