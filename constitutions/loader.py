"""Read and write constitutions. Every fault of a file is one line: the file, the key or line, how to fix it."""

from __future__ import annotations

from pathlib import Path

import yaml

from constitutions.schema import Constitution
from harness import files
from harness.errors import UserError
from harness.store import write_text

_FOLDER = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the constitutions that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path) -> Constitution:
    """A shipped constitution by name, or one from a YAML file; a shipped name wins over a file of that name.

    Raises UserError for a missing file, malformed YAML, an unknown key, a wrong type or a duplicate id.
    """
    names = shipped()
    path = _FOLDER / f"{name_or_path}.yaml" if str(name_or_path) in names else Path(name_or_path).expanduser()
    if not path.is_file():
        raise UserError(f"{name_or_path}: no such constitution; give a YAML file or a shipped name: {', '.join(names)}")
    return files.read_model(path, Constitution, "a constitution")


def dump(constitution: Constitution, path: Path) -> None:
    """Write `constitution` as YAML, atomically; `load` gives back an equal one. Raises UserError if it cannot."""
    raw = constitution.model_dump(exclude_defaults=True)
    text = yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, as a person would write them; reading puts back the blank lines before."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    text = text.lstrip("\n")
    # NEL is a line break to YAML, which PyYAML would write bare and read back as a space.
    style = '"' if "\x85" in text else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
