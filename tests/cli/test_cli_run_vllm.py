"""All arms with `models.engine: vllm`, from the first sample to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.models import vllm_engine

ARMS = {"pretrained", "helpful_only", "hh_rlhf", "sl_cai", "rl_cai", "rl_cai_cot"}


@pytest.mark.vllm
@pytest.mark.skipif(not vllm_engine.installed(), reason="vLLM is not installed; `tox -e vllm` has it")
def test_all_arms_are_sampled_by_vllm(tiny_experiment: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    text = tiny_experiment.read_text()
    assert "models: {base: " in text
    file.write_text(text.replace("models: {base: ", "models: {engine: vllm, base: "))
    command = [sys.executable, "-m", "harness.cli", "run", str(file), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)  # vLLM wants real streams
    assert done.returncode == 0, done.stderr[-2000:]
    responses = pd.read_parquet(tmp_path / "run" / "results" / "responses.parquet")
    assert set(responses["arm"]) == ARMS
    assert responses["response"].notna().all()
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    engines = {
        path.parent.parent.name: json.loads(path.read_text())["settings"].get("models.engine")
        for path in (tmp_path / "run" / "stages").glob("*/*/manifest.json")
    }
    assert engines["sample.rl_cai"] == engines["feedback.cot"] == engines["chains.critiqued"] == "vllm"
    assert engines["gold.harmless"] is None
