"""What a finished stage's folder says of itself: manifest.json, with the size and SHA-256 of every artefact.

A stage is done when its manifest can be read and every artefact matches it. Hashing gigabytes at each start would be
slow, so a run keeps a record of what it has verified: a file whose size, times and inode are unchanged is trusted, any
other is hashed again. `cai verify` hashes everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import logs, store

NAME = "manifest.json"
LOGS = ("trainer", "tracking", logs.FOLDER)  # folders of what is logged: for people, and never an input
Artefacts = Mapping[str, Mapping[str, Any]]  # size and sha256 by path relative to the stage's folder


def write(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a stage's folder, with a checksum of its own."""
    store.write_text(folder / NAME, _text(about))


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder; None where there is none, or it is not what `write` wrote."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        found = json.loads(text)
        return found if isinstance(found, dict) and text == _text(found) else None
    except (OSError, ValueError):
        return None


def _text(about: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in about.items() if name != "checksum"}
    checksum = hashlib.sha256(json.dumps(rest, default=str).encode()).hexdigest()
    return json.dumps(rest | {"checksum": checksum}, indent=2, default=str) + "\n"


def digest(artefacts: Artefacts) -> str:
    """One hash of all artefacts, by which a dependant remembers what it was made from."""
    listed = [[path, entry["size"], entry["sha256"]] for path, entry in sorted(artefacts.items())]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def files(folder: Path) -> Iterator[Path]:
    """The artefacts in a stage's folder, in order: all its files but the manifest and the logs."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in LOGS and parts != (NAME,):
            yield path


def reseal(folder: Path) -> None:
    """Bring the manifest of a folder whose artefacts a command has written anew up to date, if it has one."""
    found = read(folder)
    if found is not None:
        found["artefacts"] = Record(folder, {}).seal(folder, folder)
        write(folder, found)


@dataclass
class Record:
    """What a run has verified: state and hash of files by path relative to the run's folder (RUN/.verified.json)."""

    run: Path
    known: dict[str, list[Any]]
    changed: bool = False

    @classmethod
    def of(cls, run: Path) -> Record:
        try:
            known = json.loads((run / ".verified.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        return cls(run, known if isinstance(known, dict) else {})

    def save(self) -> None:
        """Write the record, if it has changed; one that cannot be written costs time alone."""
        if self.changed and self.run.is_dir():
            with contextlib.suppress(OSError):
                store.write_text(self.run / ".verified.json", json.dumps(self.known))
            self.changed = False

    def add(self, known: Mapping[str, list[Any]]) -> None:
        """Take over what another process has verified."""
        self.changed = self.changed or any(self.known.get(name) != entry for name, entry in known.items())
        self.known |= known

    def sha256(self, path: Path, *, anew: bool = False, place: Path | None = None) -> str:
        """Hash of a file: the recorded one where its state is unchanged, unless `anew`.

        place: where the file will be kept, if it is to move. Raises OSError when it cannot be read.
        """
        state, name = _state(path), (place or path).relative_to(self.run).as_posix()
        entry = self.known.get(name)
        if not anew and isinstance(entry, list) and entry[:-1] == state:
            return str(entry[-1])
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if entry != [*state, found]:
            self.known[name] = [*state, found]
            self.changed = True
        return found

    def seal(self, folder: Path, place: Path) -> dict[str, dict[str, Any]]:
        """The artefacts in `folder`, which is to be moved to `place`."""
        return {
            path.relative_to(folder).as_posix(): {
                "size": path.stat().st_size,
                "sha256": self.sha256(path, place=place / path.relative_to(folder)),
            }
            for path in files(folder)
        }

    def damage(self, folder: Path, artefacts: Artefacts, *, anew: bool = False) -> list[str]:
        """What is wrong with the artefacts in `folder`, a line each: missing, another size, another content."""
        found = []
        for name, entry in artefacts.items():
            path = folder / name
            try:
                if path.stat().st_size != entry["size"]:
                    found.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
                elif self.sha256(path, anew=anew) != entry["sha256"]:
                    found.append(f"{name} is not what the stage wrote")
            except OSError as error:
                found.append(f"{name}: {error.strerror or error}")
        return found


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
