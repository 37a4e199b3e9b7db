"""What `cai run` silences: warnings of named libraries, and never the project's own."""

from __future__ import annotations

import warnings

from harness.quiet import quiet


def warned_by(module: str) -> bool:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        warnings.warn_explicit("look out", UserWarning, f"{module}.py", 1, module=module, registry={})
    return bool(heard)


def test_only_named_libraries_are_silenced() -> None:
    assert not warned_by("torch.nn.modules")
    assert not warned_by("transformers.trainer")
    assert not warned_by("trl")
    assert warned_by("pipelines.ppo")
    assert warned_by("harness.data")
    assert warned_by("torchlike")
    assert warned_by("chosen_sft")  # a user's method file
