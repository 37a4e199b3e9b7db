"""The stage graph: what a run consists of, what of it is finished, and how the rest is carried out.

Each stage declares the settings, files and models it reads, and nothing else. Its key is the hash of those, of its
inputs' keys and of the code it can reach. Its artefacts lie in `stages/NAME/KEY/`, which appears at once when the stage
is finished; until then the work is in `KEY.partial/`, from which a stage that was killed resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness import code, manifest
from harness.errors import UserError
from harness.models.identity import identity


class Progress(Protocol):
    """Hears how far a stage is."""

    def advance(self, done: float, total: float, note: str = "") -> None: ...

    def row(self, values: Mapping[str, Any]) -> None:
        """A row of a training log: step, and numbers by name; `samples`: a few {prompt, response, score}."""


class Watcher(Protocol):
    """Hears how a run goes, in which several stages may be at work; `harness.cli` draws bars, tests listen."""

    def stage(self, name: str, position: int, total: int) -> Progress:
        """A stage begins, the `position`th of `total`; what is to hear of its progress."""

    def ended(self, name: str) -> None:
        """It is no longer at work."""

    def say(self, line: str) -> None:
        """Something that whoever waits for the run should know."""


class Silent:
    """A Watcher and a Progress that nobody listens to."""

    def stage(self, name: str, position: int, total: int) -> Silent:
        return self

    def ended(self, name: str) -> None:
        return

    def say(self, line: str) -> None:
        return

    def advance(self, done: float, total: float, note: str = "") -> None:
        return

    def row(self, values: Mapping[str, Any]) -> None:
        return


class Values:
    """Settings by name: {"seed": 0, "rl.epochs": 1} is read as `values.seed` and `values.rl.epochs`.

    Reading one that the stage does not declare raises AttributeError, so that no result depends on it unnoticed.
    """

    def __init__(self, values: Mapping[str, Any]):
        sections: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, dot, rest = name.partition(".")
            if dot:
                sections.setdefault(section, {})[rest] = value
            else:
                vars(self)[name] = value
        for section, part in sections.items():
            vars(self)[section] = Values(part)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r} is read but not declared by the stage; declared: {', '.join(vars(self))}")


@dataclass
class Work:
    """What a stage's function receives: its folder to write to, and what the stage declares.

    origin: a hash of all that the artefacts depend on, the inputs' bytes included; what resumes may be held against it.
    sharded: whether its workers (`harness.ranks`) split the trained model between them.
    """

    folder: Path
    settings: Any = field(default_factory=lambda: Values({}))
    inputs: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    options: Any = field(default_factory=lambda: Values({}))
    progress: Progress = field(default_factory=Silent)
    origin: str = ""
    sharded: bool = False
    tokens: int | None = None  # read and written; None where they were not counted
    _uncounted: bool = False

    def count(self, tokens: int | None) -> None:
        """Add tokens read and written; with None, which nobody counted, the stage's number stays unknown."""
        self._uncounted = self._uncounted or tokens is None
        self.tokens = None if self._uncounted or tokens is None else (self.tokens or 0) + tokens


@dataclass(frozen=True)
class Stage:
    """One step of a run: a module-level function of `Work`, and all that it reads.

    settings: values by dotted name. files: data files or folders by role, hashed by content, wherever they lie.
    models: names of the models whose weights it loads by role, hashed by identity. options: what else the function
    takes and no result depends on (batch sizes of inference, where logs go). calls: functions that it reaches by a name
    in a string, as "suites.elo:measure". place: a folder of the run that holds the artefacts, in place of
    stages/NAME/KEY. published: artefacts of which the run's folder has a copy at its top. kind: which entry of the
    experiment's `compute` says what it needs; no result depends on it.
    """

    name: str
    function: Callable[[Work], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    files: Mapping[str, str | Path] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: Sequence[str] = ()
    place: str | None = None
    published: Sequence[str] = ()
    kind: str = "model"

    def __hash__(self) -> int:
        return hash(self.name)

    def work(
        self, folder: Path, inputs: Mapping[str, Path], progress: Progress | None = None, origin: str = ""
    ) -> Work:
        """What its function receives, to write into `folder`."""
        files = {role: Path(file) for role, file in self.files.items()}
        settings, options = Values(self.settings), Values(self.options)
        return Work(folder, settings, inputs, files, self.models, options, progress or Silent(), origin)


@dataclass(frozen=True)
class Planned:
    """A stage with its key, its folder and its status.

    done: finished for this key, every artefact whole and made from its inputs as they are. stale: finished, but for an
    older key or from other inputs. damaged: finished, but `problem` is wrong with what lies there. started: some work
    is kept. to do: none. digest: of the artefacts, where done.
    """

    stage: Stage
    key: str
    folder: Path
    partial: Path
    status: str
    problem: str = ""
    digest: str | None = None

    @property
    def needs(self) -> list[str]:
        """Names of the stages that it reads."""
        return list(dict.fromkeys(upstream.name for upstream in self.stage.inputs.values()))


def plan(targets: Sequence[Stage], run: Path) -> list[Planned]:
    """Every stage that `targets` need, inputs first, with its status in the folder `run`. Loads nothing."""
    record = manifest.Record.of(run)
    planned: dict[str, Planned] = {}
    for stage in in_order(targets):
        planned[stage.name] = examine(stage, planned, run, record)
    record.save()
    return list(planned.values())


def examine(stage: Stage, upstream: Mapping[str, Planned], run: Path, record: manifest.Record) -> Planned:
    """What there is of `stage` in the folder `run`; `upstream` holds its inputs by stage, examined before."""
    key = stage_key(stage, {name: item.key for name, item in upstream.items()})
    home = run / "stages" / stage.name
    folder = run / stage.place if stage.place else home / key
    partial = home / f"{key}.partial"
    found = manifest.read(folder)
    problem = ""
    if found is not None and found["key"] == key:
        inputs = {role: upstream[source.name].digest for role, source in stage.inputs.items()}
        made_from = {role: entry["artefacts"] for role, entry in found["inputs"].items()}
        damage = record.damage(folder, found["artefacts"])
        if not damage and made_from == inputs:
            return Planned(stage, key, folder, partial, "done", digest=manifest.digest(found["artefacts"]))
        problem = damage[0] if damage else ""
    elif found is None and folder.is_dir() and not stage.place:
        problem = f"{manifest.NAME} is missing or not whole"
    if problem:
        status = "damaged"
    elif partial.is_dir():
        status = "started"
    else:
        older = home.is_dir() and any(home.glob(f"*/{manifest.NAME}"))
        status = "stale" if older or found is not None else "to do"
    return Planned(stage, key, folder, partial, status, problem)


def in_order(targets: Sequence[Stage]) -> list[Stage]:
    """`targets` and all they depend on, inputs first. Raises UserError when two stages share a name."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        known = ordered.get(stage.name)
        if known is not None:
            if known is not stage:
                raise UserError(f"two different stages are named {stage.name!r}; give an arm or suite another name")
            return
        for upstream in stage.inputs.values():
            visit(upstream)
        ordered[stage.name] = stage

    for target in targets:
        visit(target)
    return list(ordered.values())


def stage_key(stage: Stage, keys: Mapping[str, str]) -> str:
    """16 hex digits: hash of all that the stage reads. `keys` holds the keys of the inputs, by stage."""
    parts = {
        "settings": stage.settings,
        "inputs": {role: keys[upstream.name] for role, upstream in stage.inputs.items()},
        "files": {role: fingerprint(Path(file)) for role, file in stage.files.items()},
        "models": {role: identity(name) for role, name in stage.models.items()},
        "code": code.version(stage.function, *stage.calls),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Hash of a file's content, or of the names and contents of all files in a folder."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        entries = [(file.relative_to(path).as_posix(), fingerprint(file)) for file in files]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    raise UserError(f"{path}: not found; check the path in the experiment file")
