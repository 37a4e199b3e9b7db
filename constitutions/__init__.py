"""The principles: their schema, a loader, the shipped default, and importers of the paper's and of other files."""

from constitutions.importer import import_paper
from constitutions.loader import dump, load, shipped
from constitutions.plain import import_llm_swarm, import_principles
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
    "import_llm_swarm",
    "import_paper",
    "import_principles",
    "load",
    "shipped",
]
