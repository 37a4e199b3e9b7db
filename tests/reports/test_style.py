"""Colours and markers: the packaged arms have their own, and any further arm has one too."""

from __future__ import annotations

import pytest

from harness.experiment import ARMS
from reports import style


def test_a_seventh_packaged_arm_has_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {arm: (style.colour(arm), style.marker(arm)) for arm in ARMS}
    assert len(set(before.values())) == len(ARMS)
    monkeypatch.setattr(style, "ARMS", (*ARMS, "seventh"))
    assert {arm: (style.colour(arm), style.marker(arm)) for arm in ARMS} == before
    assert style.colour("seventh") in style.OTHERS
    assert style.marker("seventh") in style.MARKERS[6:]
