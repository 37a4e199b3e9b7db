"""The embedded model's conversion says nothing of its own: the run has its progress."""

from __future__ import annotations

import pytest
from transformers import modeling_gguf_pytorch_utils as reader

from harness.models import embedded


def test_reading_a_gguf_file_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = reader.tqdm
    with embedded._no_bar():
        assert list(reader.tqdm([1, 2], desc="Converting and de-quantizing GGUF tensors...")) == [1, 2]
    assert reader.tqdm is bar
    assert capsys.readouterr().err == ""
    list(bar([1, 2], desc="Converting"))
    assert "Converting" in capsys.readouterr().err  # what would be drawn without it
