"""The stage graph: what a run consists of, what of it is finished, and how the rest is carried out.

A stage's key is the hash of its config, its inputs' keys, its files' content and its code. Its artefacts
lie in `stages/NAME/KEY/`, which appears at once when the stage is finished; until then the work is in
`KEY.partial/`, from which a stage that was killed resumes.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from harness.errors import UserError

PACKAGES = ("constitutions", "harness", "pipelines", "suites", "reports")


class Progress(Protocol):
    """Who hears how far the work is; `harness.cli` draws bars, tests listen."""

    def stage(self, name: str, position: int, total: int) -> None: ...

    def advance(self, done: float, total: float, note: str = "") -> None: ...


class Silent:
    """A Progress that nobody watches."""

    def stage(self, name: str, position: int, total: int) -> None:
        return

    def advance(self, done: float, total: float, note: str = "") -> None:
        return


@dataclass
class Work:
    """What a stage's function gets: its folder to write to, its config, its inputs' folders."""

    folder: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    progress: Progress = field(default_factory=Silent)
    tokens: int = 0  # read and written; goes into the manifest


@dataclass(frozen=True)
class Stage:
    """One step of a run: a module-level function of `Work`, what it reads, and what it depends on."""

    name: str
    function: Callable[[Work], None]
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    files: Sequence[str | Path] = ()

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Planned:
    """A stage with its key, its folder and its status: done, stale (finished for an older key), started or to do."""

    stage: Stage
    key: str
    folder: Path
    status: str


def plan(targets: Sequence[Stage], run: Path) -> list[Planned]:
    """Every stage that `targets` need, inputs first, with its status in the folder `run`. Loads nothing."""
    keys: dict[str, str] = {}
    planned = []
    for stage in in_order(targets):
        keys[stage.name] = key = stage_key(stage, keys)
        home = run / "stages" / stage.name
        folder = home / key
        if (folder / "manifest.json").is_file():
            status = "done"
        elif (home / f"{key}.partial").is_dir():
            status = "started"
        else:
            status = "stale" if home.is_dir() and any(home.glob("*/manifest.json")) else "to do"
        planned.append(Planned(stage, key, folder, status))
    return planned


def in_order(targets: Sequence[Stage]) -> list[Stage]:
    """`targets` and all they depend on, inputs first. Raises ValueError when two stages share a name."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        known = ordered.get(stage.name)
        if known is not None:
            if known is not stage:
                raise ValueError(f"two different stages are named {stage.name!r}")
            return
        for upstream in stage.inputs.values():
            visit(upstream)
        ordered[stage.name] = stage

    for target in targets:
        visit(target)
    return list(ordered.values())


def stage_key(stage: Stage, keys: Mapping[str, str]) -> str:
    """16 hex digits: hash of config, inputs, files and code. `keys` holds the keys of the inputs."""
    parts = {
        "config": stage.config,
        "inputs": {role: keys[upstream.name] for role, upstream in stage.inputs.items()},
        "files": [fingerprint(Path(file)) for file in stage.files],
        "code": code_version(stage.function),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Hash of a file's content; of a folder's names, sizes and times (it may hold gigabytes of weights)."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if path.is_dir():
        entries = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.rglob("*"))]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    raise UserError(f"{path}: not found; check the path in the experiment file")


def code_version(function: Callable[..., Any]) -> str:
    """Hash of the function's module and of every project module that it imports, directly or not."""
    digest = hashlib.sha256(function.__qualname__.encode())
    source = inspect.getsourcefile(function)
    if source is None:
        raise ValueError(f"{function!r}: a stage's function must live in a file")
    for path in sorted(_reachable(Path(source).resolve())):
        digest.update(path.name.encode() + _normalised(path))
    return digest.hexdigest()


@cache
def _normalised(path: Path) -> bytes:
    """The module's syntax tree: comments and layout do not make a finished stage stale."""
    return ast.dump(_without_docstrings(ast.parse(path.read_text(encoding="utf-8")))).encode()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _reachable(start: Path) -> set[Path]:
    found: set[Path] = set()
    queue = [start]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue.extend(_imports(path))
    return found


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """Files of the project modules that the module at `path` imports, at its top or inside functions."""
    root = Path(__file__).resolve().parent.parent
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    files = []
    for name in sorted(names):
        if name.split(".")[0] in PACKAGES:
            stem = root.joinpath(*name.split("."))
            files += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return tuple(files)
