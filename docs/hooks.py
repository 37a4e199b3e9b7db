"""What mkdocs builds beside the pages in this folder: the reference of the experiment file and of the command line,
written from the code itself, and the pages at the root of the repository. `mkdocs.yml` names this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAPER = ROOT / "experiments" / "paper.yaml"
_SIGNS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in this folder, and the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    made = {"experiment-file.md": experiment_page(), "command-line.md": command_page()}
    made |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ROOT_PAGES}
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    linked = set(re.findall(r"\]\(\.\./([^)#]+)", pages)) - set(ROOT_PAGES)
    made |= {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(linked)}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """In the site, `docs/` and the root of the repository are one folder."""
    return re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)


# ---------------------------------------------------------------- the command line


def command_page() -> str:
    """Every command with its options, as Typer writes it."""
    import typer
    from typer.cli import get_docs_for_click

    from harness.cli import app

    command = typer.main.get_command(app)
    context = command.make_context("cai", [], resilient_parsing=True)
    return str(get_docs_for_click(obj=command, ctx=context, name="cai", title="The command line"))


# ---------------------------------------------------------------- the experiment file


def experiment_page() -> str:
    """Every key of an experiment file: its type, default, meaning, and what the paper has. Raises ValueError for a key
    without a description."""
    from harness.experiment import Experiment

    said = _paper()
    parts = [
        "# The experiment file",
        "An experiment is one YAML file. Every key but `name` has a default, and an unknown key is an error that names "
        "the key. The defaults are this project's own, small enough for a CPU. The last column has the value of "
        "`experiments/paper.yaml`, the paper's as far as it is published, and where it is stated: sections and figures "
        "are those of Bai et al. 2022 ([arXiv:2212.08073](https://arxiv.org/abs/2212.08073)); HH is "
        "[arXiv:2204.05862](https://arxiv.org/abs/2204.05862).",
        *_section(Experiment, [""], said),
    ]
    return "\n\n".join(parts) + "\n"


def _section(model: type[BaseModel], places: list[str], said: dict[str, str]) -> Iterator[str]:
    """Heading, docstring and table of a section, which may stand in several `places`, and of those in it."""
    if places != [""]:
        yield f"## {', '.join(f'`{place}`' for place in places)} {{#{places[0]}}}"
        yield " ".join((model.__doc__ or "").split())
    rows = ["| key | type | default | meaning | `paper.yaml` |", "|---|---|---|---|---|"]
    inner: dict[type[BaseModel], list[str]] = {}
    for name, field in model.model_fields.items():
        key = f"{places[0]}.{name}".removeprefix(".")
        if not field.description:
            raise ValueError(f"{key} has no description; write a string under it in {model.__module__}")
        meaning = " ".join(field.description.split())
        for part in _models(field.annotation):
            inner.setdefault(part, []).append(key)
            meaning += f" [Its keys](#{inner[part][0]})."
        cells = [f"`{name}`", _kind(field), _default(field), meaning, said.get(key, "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    yield "\n".join(rows)
    for part, where in inner.items():
        yield from _section(part, where, said)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def _kind(field: FieldInfo) -> str:
    """A key's type in plain words, with its bounds."""
    bounds = {_SIGNS[type(m)]: getattr(m, _SIGNS[type(m)]) for m in field.metadata if type(m) in _SIGNS}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    said = _words(field.annotation)
    if low is not None:
        said += f", {'above' if 'gt' in bounds else 'from'} {low:g}"
    if high is not None and high <= 10_000:
        said += f" {'below' if 'lt' in bounds else 'to'} {high:g}"
    return said


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("`null`" if part is NoneType else _words(part) for part in inner)
    if origin is tuple:
        several = len(inner) > 1 and inner[1] is not Ellipsis
        return f"list of {len(inner)}" if several else f"list of {_plural(inner[0])}"
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated
        return _words(inner[0])
    if _models(annotation):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}.get(annotation, "value")


def _plural(annotation: Any) -> str:
    said = _words(annotation)
    return said if said.startswith("`") or said == "text" else f"{said}s"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return f"`{written.removesuffix('...' + chr(10)).strip()}`"


def _paper() -> dict[str, str]:
    """Dotted key: the value in experiments/paper.yaml, and its comment, which says where the paper states it."""
    found: dict[str, str] = {}
    path: list[str] = []
    above = ""
    for line in PAPER.read_text(encoding="utf-8").splitlines():
        matched = re.fullmatch(r"( *)(\w+):(?: ([^#]*?))?(?:\s+# (.*))?", line)
        if matched is None:
            above = line.strip(" #") if line.startswith(" ") else ""
            continue
        indent, key, value, comment = matched.groups()
        path = [*path[: len(indent) // 2], key]
        comment, above = ". ".join(filter(None, (above, comment))), ""
        if value and key not in ("name", "base", "seed"):
            found[".".join(path)] = f"`{value}`" + (f" ({comment})" if comment else "")
    return found
