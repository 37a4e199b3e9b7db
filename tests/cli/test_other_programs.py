"""Published models in the programs that people will load them with: lm-eval, RewardBench, vLLM.

`tox -e outside` installs lm-eval and inspect_ai. RewardBench pins transformers 4.51: its loader is followed here call
by call, and used itself where it can be imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from harness.models import chat, checkpoints, vllm_engine
from harness.models.scorer import PreferenceModel

Cai = Callable[..., tuple[int, str, str]]
PAIRS = [
    ("Is tea hot?", "At first.", "No idea."),
    ("Why is the sky blue?", "Light scatters in it.", "Paint"),
]


@pytest.fixture
def published(tiny_run: Path, tmp_path: Path, cai: Cai) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        code, _, errors = cai("publish", f"{tiny_run}:{name}", "me/x", "--dry-run", "--out", tmp_path / name)
        assert code == 0, errors
        return tmp_path / name

    return write


def scores_in_the_run(run: Path) -> np.ndarray:
    """(pair, chosen or rejected): what the run's own PM, an adapter, gives."""
    pm = PreferenceModel.load(next((run / "stages" / "pm.rl_cai").glob("*/model")))
    prompts = [prompt for prompt, _, _ in PAIRS]
    return np.stack([pm.score(prompts, [pair[i] for pair in PAIRS]) for i in (1, 2)], axis=1)


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_rewardbench_reads_a_pm_as_the_run_did(tiny_run: Path, published: Callable[[str], Path]) -> None:
    """Its `run` of a sequence classifier: texts by the chat template, padded on the left, raw logits."""
    folder = published("pm.rl_cai")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = np.zeros((len(PAIRS), 2))
    for which in (0, 1):
        texts = [tokenizer.apply_chat_template(talk(p[0], p[1 + which]), tokenize=False) for p in PAIRS]
        batch = tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt")
        with torch.no_grad():
            found[:, which] = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(found, scores_in_the_run(tiny_run), atol=1e-5)


def test_rewardbench_itself(tiny_run: Path, published: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    why = "rewardbench is not installed, or does not import beside these versions of its own dependencies"
    rewardbench = pytest.importorskip("rewardbench", reason=why, exc_type=ImportError)
    from transformers import BatchEncoding

    folder = published("pm.rl_cai")
    config = rewardbench.REWARD_MODEL_CONFIG["default"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    scorer = config["pipeline_builder"]("text-classification", config["model_builder"](folder), tokenizer)
    monkeypatch.setattr(BatchEncoding, "to", lambda self, place: self)  # it wants CUDA
    rows = [
        rewardbench.prepare_dialogue_from_tokenizer({"prompt": p, "chosen": c, "rejected": r}, tokenizer)
        for p, c, r in PAIRS
    ]
    found = [scorer([row[f"text_{which}"] for row in rows])[:, 0].numpy() for which in ("chosen", "rejected")]
    np.testing.assert_allclose(np.stack(found, axis=1), scores_in_the_run(tiny_run), atol=1e-5)


def test_lm_eval_asks_an_arm_as_the_run_did(tiny_run: Path, published: Callable[[str], Path]) -> None:
    """lm-eval's log-likelihood of an answer, with --apply_chat_template, is that of the arm in the run."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed; `tox -e outside` has it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(published("sl_cai")), device="cpu", dtype="float32")
    prompt, answer, _ = PAIRS[0]
    asked = lm.apply_chat_template([{"role": "user", "content": prompt}])
    ((found, _),) = lm.loglikelihood([Instance("loglikelihood", {}, (asked, answer), 0)], disable_tqdm=True)

    arm, tokenizer = checkpoints.load_policy(next((tiny_run / "stages" / "sl_cai").glob("*/model")))
    ids = chat.encode_prompt(tokenizer, prompt) + chat.encode_response(tokenizer, answer, ended=False)
    # It counts white space at the end of the prompt (ChatML's line break) as the answer's.
    begin = len(tokenizer(asked.rstrip(), add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs = arm(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    assert found == pytest.approx(float(logprobs[range(begin - 1, len(ids) - 1), ids[begin:]].sum()), abs=1e-4)


@pytest.mark.vllm
@pytest.mark.skipif(not vllm_engine.installed(), reason="vLLM is not installed; `tox -e vllm` has it")
def test_vllm_serves_a_pm_and_an_arm(tiny_run: Path, published: Callable[[str], Path]) -> None:
    pm, arm = published("pm.rl_cai"), published("sl_cai")
    script = _VLLM.format(pm=str(pm), arm=str(arm), talks=[talk(prompt, chosen) for prompt, chosen, _ in PAIRS])
    one_process = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=one_process, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    scores, prompts, answers = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(scores, scores_in_the_run(tiny_run)[:, 0], atol=1e-4)
    tokenizer = checkpoints.load_tokenizer(arm)
    assert prompts == [chat.encode_prompt(tokenizer, prompt) for prompt, _, _ in PAIRS]
    assert all(answers)


_VLLM = """
import json
from transformers import AutoTokenizer
from vllm import LLM, PoolingParams, SamplingParams

talks = {talks!r}
small = dict(dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=256 << 20)
tokenizer = AutoTokenizer.from_pretrained({pm!r})
texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
pm = LLM({pm!r}, runner="pooling", **small)
scores = [row.outputs.probs[0] for row in pm.classify(texts, pooling_params=PoolingParams(use_activation=False))]
del pm
said = LLM({arm!r}, **small).chat([talk[:1] for talk in talks], SamplingParams(max_tokens=4, temperature=0))
print(json.dumps([scores, [row.prompt_token_ids for row in said], [row.outputs[0].text for row in said]]))
"""
