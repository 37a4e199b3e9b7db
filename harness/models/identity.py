"""Which model a name stands for: its content, not its path, so that stage keys notice new weights.

A plan calls this, so nothing heavy is imported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from harness.errors import UserError
from harness.models import embedded

_FRESH = 2.0  # seconds; a file changed this recently may change again without a new time stamp


def identity(name: str | Path) -> str:
    """What `name` stands for: the same for equal models, another after any change of weights, config or tokenizer.

    'embedded' gives its GGUF's SHA-256, a folder the hash of its files (of a LoRA folder's base too), a hub id its
    commit ('...@unresolved' where neither the cache nor the hub has one), and a server's model its name.
    Raises UserError for a path that is not a model folder.
    """
    text = str(name)
    if text == embedded.EMBEDDED:
        return f"embedded:{embedded.GGUF_SHA256}"
    if text.startswith("server:"):
        return text
    folder = local_folder(name)
    if folder is not None:
        return f"folder:{_content(folder)}"
    return f"hub:{text}@{resolve_revision(text) or 'unresolved'}"


def local_folder(name: str | Path) -> Path | None:
    """The folder that `name` is, or None for a hub id. Raises UserError when it can be neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            raise UserError(f"{path}: not a model folder (no config.json); give a Hugging Face checkpoint")
        return path
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise UserError(f"{name}: model folder not found; give a folder, a hub id or '{embedded.EMBEDDED}'")
    return None


def resolve_revision(name: str) -> str | None:
    """The commit of the hub id `name`: that of the local cache, else the hub's newest; None where neither answers.

    Models are loaded at this commit. The cache comes first, so that a run goes on with the weights that it began
    with; `hf download NAME` fetches newer ones.
    """
    from huggingface_hub import constants

    try:
        return _revision(name, constants.HF_HUB_CACHE)
    except LookupError:
        return None


@functools.lru_cache
def _revision(name: str, cache: str) -> str:
    """The commit; raises LookupError, which is not cached, where it cannot be resolved."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"model {name!r}: neither a folder nor a hub id (owner/name); correct the name") from error
    ref = Path(cache) / repo_folder_name(repo_id=name, repo_type="model") / "refs" / "main"
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    try:
        found = HfApi().model_info(name, timeout=10).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise LookupError(name) from error
    if found is None:
        raise LookupError(name)
    return found


def _content(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's files, prose and hidden ones aside."""
    files = sorted(
        path
        for path in [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
        if path.is_file() and path.suffix != ".md" and not path.name.startswith(".")
    )
    digests = _digests(folder, files)
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder).as_posix()}\0{digests[path]}\n".encode())
    base = lora_base(folder)
    if base is not None:
        whole.update(identity(base).encode())
    return whole.hexdigest()


def lora_base(folder: Path) -> str | Path | None:
    """The base model that a LoRA folder names, None for other models. A path there may be relative to the folder."""
    file = folder / "adapter_config.json"
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: names no base_model_name_or_path ({error!r}); save the adapter again") from error
    return folder / base if (folder / base).is_dir() else str(base)


def _digests(folder: Path, files: list[Path]) -> dict[Path, str]:
    """SHA-256 of each file, remembered by size and times, so that unchanged weights are read once."""
    known_file = (
        embedded.cache_folder() / "identity" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]}.json"
    )
    try:
        known = json.loads(known_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    digests, remembered = {}, {}
    for path in files:
        state = path.stat()
        stamp = f"{state.st_size}/{state.st_mtime_ns}/{state.st_ctime_ns}"
        before = known.get(str(path.relative_to(folder)))
        if before is not None and before[0] == stamp:
            digests[path] = before[1]
        else:
            with path.open("rb") as stream:
                digests[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time() - state.st_mtime > _FRESH:
            remembered[str(path.relative_to(folder))] = [stamp, digests[path]]
    if remembered != known:
        _write(known_file, remembered)
    return digests


def _write(file: Path, content: dict[str, list[str]]) -> None:
    """Write the memory of hashes at once, or not at all: a cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as stream:
            json.dump(content, stream)
        os.replace(stream.name, file)
    except OSError:
        return
