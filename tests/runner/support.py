"""What tests of runners share."""

from __future__ import annotations

import importlib.util

import pytest

NEEDS_RAY = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed; `tox -e ray` has it"),
]
