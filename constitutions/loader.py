"""Read and write constitutions. Every fault of a file is one line: the file, the key or line, the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from constitutions.schema import Constitution
from harness.errors import UserError
from harness.experiment import explain
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
    raw = _read(path)
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else type(raw).__name__
        raise UserError(f"{path}: a constitution is a mapping of keys, this file is {kind}; begin with `name: ...`")
    try:
        return Constitution.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from error


def dump(constitution: Constitution, path: Path) -> None:
    """Write `constitution` as YAML, atomically; `load` gives back an equal one. Raises UserError if it cannot."""
    raw = constitution.model_dump(exclude_defaults=True)
    text = yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: {where}not valid YAML ({problem}); quote or mend the text there") from error


class _Loader(yaml.SafeLoader):
    """YAML's own rule, which PyYAML does not check: a key stands once. The second would hide the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, as a person would write them; reading puts back the blank lines before."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    text = text.lstrip("\n")
    # NEL is a line break to YAML, which PyYAML would write bare and read back as a space.
    style = '"' if "\x85" in text else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
