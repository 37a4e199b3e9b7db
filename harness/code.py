"""Which code a stage's function can reach, so that its key follows that code and no other.

Definitions are followed, not modules: from the function through every project function, class and constant that it
names, wherever it is imported. Comments, layout, docstrings and the annotations of functions do not count. What is
reached by a name in a string alone (importlib, getattr) is not seen: such a stage lists it in `Stage.calls`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness import store
from harness.models import embedded

PACKAGES = ("constitutions", "harness", "pipelines", "suites", "reports")
ROOT = Path(__file__).resolve().parent.parent
WHOLE = "*"  # in place of a definition's name: all of its module

Definition = tuple[Path, str]  # a project file and a name defined at its top level


def version(function: Callable[..., Any], *others: str) -> str:
    """Hash of all code that `function` and `others` ("suites.elo:measure" or "my_suite.py:run") can reach.

    Parsing the whole project takes seconds, so what was found is kept in the cache folder for as long as no file of the
    project changes. A user's own file is read each time.
    """
    source = inspect.getsourcefile(function)
    own = source is None or not Path(source).resolve().is_relative_to(ROOT)
    if own or any(other.rpartition(":")[0].endswith(".py") for other in others):
        return _version(function, *others)
    known, name = _known(), " ".join([f"{function.__module__}:{function.__qualname__}", *others])
    if name not in known:
        known[name] = _version(function, *others)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, and nothing else
            store.write_json(_cache(), {"sources": sources(), "versions": known})
    return known[name]


def _cache() -> Path:
    return embedded.cache_folder() / "code.json"


@cache
def sources() -> str:
    """Hash of all of the project's code, and of the Python that reads it: syntax trees differ between versions."""
    state = hashlib.sha256(sys.version.encode())
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            state.update(f"\0{_label(path)}\0{_text(path)}".encode())
    return state.hexdigest()


@cache
def _known() -> dict[str, str]:
    """Versions by function, as an earlier process found them in the same sources."""
    try:
        found = json.loads(_cache().read_text(encoding="utf-8"))
        return dict(found["versions"]) if found["sources"] == sources() else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _version(function: Callable[..., Any], *others: str) -> str:
    digest = hashlib.sha256()
    for path, name in sorted(reached(function, *others), key=str):
        digest.update(f"\0{_label(path)}:{name}\0".encode())
        digest.update(_source(path, name))
    return digest.hexdigest()


def reached(function: Callable[..., Any], *others: str) -> set[Definition]:
    """The definitions that `function` and `others` can reach, themselves included."""
    source = inspect.getsourcefile(function)
    if source is None:
        raise ValueError(f"{function!r}: a stage's function must live in a file")
    queue: list[Definition] = [(Path(source).resolve(), function.__qualname__.split(".")[0])]
    queue += [_named(other) for other in others]
    found: set[Definition] = set()
    while queue:
        definition = queue.pop()
        if definition not in found:
            found.add(definition)
            path, name = definition
            queue += _references(path, name)
            if _module(path).always and name != WHOLE:
                queue.append((path, ""))  # what runs when the module is imported
    return found


def _named(text: str) -> Definition:
    place, _, name = text.rpartition(":")
    path = Path(place).resolve() if place.endswith(".py") else _file(place)
    if path is None:
        raise ValueError(f"{text}: no such module")
    return path, name


def _label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


@dataclass
class _Module:
    """A parsed file: what its top level defines, imports and does besides."""

    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # local name: (module, name in it)
    always: list[ast.stmt] = field(default_factory=list)

    def nodes(self, name: str) -> list[ast.stmt]:
        """The statements that make `name`; for "" those that define nothing, for WHOLE all."""
        if name == WHOLE:
            return [*dict.fromkeys(node for nodes in self.defined.values() for node in nodes), *self.always]
        return self.always if name == "" else self.defined.get(name, [])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _module(path: Path) -> _Module:
    module = _Module()
    for node in _bare(ast.parse(_text(path))).body:
        names = _bound(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            module.imports |= _imported(node)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            module.imports |= _all_imports(node)
            if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
                module.always.append(node)
        elif names:
            for name in names:
                module.defined.setdefault(name, []).append(node)
        elif not isinstance(node, ast.Pass):
            module.always.append(node)
    return module


@cache
def _source(path: Path, name: str) -> bytes:
    """A definition's syntax tree, which holds no comments and no layout."""
    return "\0".join(ast.dump(node) for node in _module(path).nodes(name)).encode()


def _bound(node: ast.stmt) -> list[str]:
    """Names that a top-level statement defines or changes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _is_text(node: ast.stmt) -> bool:
    """Whether it is a string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _bare(tree: ast.Module) -> ast.Module:
    """`tree` without docstrings, those of a class's attributes too, and without the annotations of functions."""
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:  # type: ignore[arg-type]  # narrowed by `documented`
            node.body = node.body[1:] or [ast.Pass()]  # type: ignore[attr-defined]  # a def or a class
        if isinstance(node, ast.ClassDef):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            for inner in ast.walk(node):
                if isinstance(inner, ast.arg):
                    inner.annotation = None
                elif isinstance(inner, ast.AnnAssign):
                    inner.annotation = ast.Constant(None)
    return tree


# ---------------------------------------------------------------- what a definition refers to


@cache
def _references(path: Path, name: str) -> frozenset[Definition]:
    """The definitions that a definition names."""
    module = _module(path)
    found: set[Definition] = set()
    for node in module.nodes(name):
        imports = module.imports | _all_imports(node)
        for root, attributes in _chains(node):
            if root in imports:
                found.update(_follow(*imports[root], attributes))
            elif root in module.defined:
                found.add((path, root))
    return frozenset(found)


def _chains(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Every name in `tree` with the attributes that are read from it: ("chat", ["parse"]) for chat.parse."""
    if isinstance(tree, ast.Attribute):
        attributes: list[str] = []
        node: ast.AST = tree
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            yield node.id, attributes
            return
        yield from _chains(node)
        return
    if isinstance(tree, ast.Name):
        yield tree.id, []
    for child in ast.iter_child_nodes(tree):
        yield from _chains(child)


def _follow(module: str, name: str | None, attributes: list[str]) -> Iterator[Definition]:
    """What `attributes` of an imported thing are: a definition, or all of a module that is used as a value."""
    if module.split(".")[0] not in PACKAGES:
        return
    if name is not None:
        inner = f"{module}.{name}"
        if _file(inner) is None:
            attributes = [name, *attributes]
        else:
            module = inner
    while attributes and _file(f"{module}.{attributes[0]}") is not None:
        module, attributes = f"{module}.{attributes[0]}", attributes[1:]
    path = _file(module)
    if path is None:
        return
    if not attributes:
        yield path, WHOLE
    elif attributes[0] in _module(path).defined:
        yield path, attributes[0]
    elif attributes[0] in _module(path).imports:  # passed on from another module
        yield from _follow(*_module(path).imports[attributes[0]], attributes[1:])
    else:
        yield path, WHOLE


def _all_imports(tree: ast.AST) -> dict[str, tuple[str, str | None]]:
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= _imported(node)
    return found


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
    """Local names that an import statement makes: (module, name in it or None)."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.split(".")[0]: (alias.name if alias.asname else alias.name.split(".")[0], None)
            for alias in node.names
        }
    return {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}


@cache
def _file(module: str) -> Path | None:
    """The project file of a dotted module name; None for anything else."""
    if module.split(".")[0] not in PACKAGES:
        return None
    stem = ROOT.joinpath(*module.split("."))
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
