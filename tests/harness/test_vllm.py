"""The vLLM engine beside the transformers engine: the same probabilities, named draws, growing contexts, errors."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import constitutions
from harness.errors import UserError
from harness.models import base, chat, checkpoints, vllm, vllm_engine
from harness.models.base import Choice, LanguageModel, Sample, logprobs
from harness.models.open import chosen, open_model
from harness.models.transformers import Generator
from pipelines import ai_feedback, critique_revise
from suites import hhh

PROMPTS = [
    "Why is the sky blue?",
    "Tea?",
    "Write four lines about the sea and the wind that blows over it.",
    "hello there",
    "Name a tree that grows in Norway, and say what its wood is good for.",
]
needs_vllm = pytest.mark.skipif(not vllm_engine.installed(), reason="vLLM is not installed; `tox -e vllm` has it")


@pytest.fixture(scope="module")
def engine() -> Iterator[Callable[[str | Path], vllm.VllmModel]]:
    """Opens models on the engine; small KV cache, and gone afterwards."""
    before = vllm_engine._KV_CACHE
    vllm_engine._KV_CACHE = 256 << 20
    yield vllm.load
    vllm.release()
    vllm_engine._KV_CACHE = before


def here(name: str | Path) -> Generator:
    return Generator(*checkpoints.load_policy(name), batch_size=8)


# ---------------------------------------------------------------- choosing the engine; what users read


def test_auto_is_vllm_where_it_is_installed_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_vllm in (False, True):
        for has_gpu in (False, True):
            monkeypatch.setattr(vllm_engine, "installed", lambda has_vllm=has_vllm: has_vllm)
            monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
            assert chosen("auto") == ("vllm" if has_vllm and has_gpu else "transformers")
            assert chosen("vllm") == "vllm"
            assert chosen("transformers") == "transformers"


def test_a_missing_vllm_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: False)
    with pytest.raises(UserError, match=r"vLLM is not installed; pip install 'cai-harness\[vllm\]'.*transformers$"):
        open_model(tiny_model, engine="vllm")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ImportError("libfoo.so: no such file\nmore"), "vLLM is damaged .libfoo.so: no such file.; install it anew"),
        (ValueError("Model architectures ['X'] are not supported"), "does not run this architecture .*transformers"),
        (ValueError("No available memory for the cache blocks."), "not enough memory .*; end other programs"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "not enough memory"),
        (RuntimeError(""), r"vLLM failed \(RuntimeError\)"),
    ],
)
def test_what_kept_vllm_from_starting_is_one_line(error: Exception, line: str) -> None:
    import re

    said = vllm_engine.remedy(error)
    assert re.search(line, said)
    assert "\n" not in said


# ---------------------------------------------------------------- the same model as under transformers


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("choices", "lead"), [(["A", "B"], "The answer is: ("), (["(A)", "(B)"], ""), ([" yes", " certainly not", "b"], "")]
)
def test_choices_have_the_log_probabilities_of_transformers(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path, choices: list[str], lead: str
) -> None:
    served, model = engine(tiny_model), here(tiny_model)
    done: dict[int, Choice] = {}
    got = served.choose(
        PROMPTS,
        choices,
        lead=lead,
        together=2,
        on_batch=lambda index, found: done.update(zip(index, found, strict=True)),
    )
    expected = model.choose(PROMPTS, choices, lead=lead)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert done == dict(enumerate(got))


@needs_vllm
@pytest.mark.vllm
def test_greedy_conversations_are_those_of_transformers(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path
) -> None:
    requests = [["Say it in other words.", "And again?"]] * 3 + [["Why?"], []]
    keys = [[str(i)] * (len(row) + 1) for i, row in enumerate(requests)]
    settings = {"keys": keys, "max_new_tokens": 9, "temperature": 0.0}
    done: dict[int, list[Sample]] = {}
    got = engine(tiny_model).converse(
        PROMPTS,
        requests,
        **settings,
        on_batch=lambda index, chains: done.update(zip(index, chains, strict=True)),
    )
    assert got == here(tiny_model).converse(PROMPTS, requests, **settings)
    assert done == dict(enumerate(got))


@needs_vllm
@pytest.mark.vllm
def test_without_a_chat_template_a_human_turn_ends_an_answer(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, tokenizer = checkpoints.load_policy(tiny_model)
    tokenizer.chat_template = None
    checkpoints.save(policy, tokenizer, tmp_path / "plain")
    keys = [["a", "b", "c"]] * len(PROMPTS)
    requests = [["Why?", "And?"]] * len(PROMPTS)
    settings = {"keys": keys, "max_new_tokens": 12, "temperature": 0.0}
    served, model = engine(tmp_path / "plain"), here(tmp_path / "plain")
    whole = served.converse(PROMPTS, requests, **settings)
    assert whole == model.converse(PROMPTS, requests, **settings)
    # What the model says anyway stands for the human turn, which it does not know.
    marker = tokenizer.decode(whole[0][0].ids[5:7])
    for module in (vllm, base):
        monkeypatch.setattr(module, "HUMAN_TURN", marker)
    cut = served.converse(PROMPTS, requests, **settings)
    assert cut == model.converse(PROMPTS, requests, **settings)
    assert len(cut[0][0].ids) < len(whole[0][0].ids)


@needs_vllm
@pytest.mark.vllm
def test_a_stop_token_ends_an_answer_and_stays_in_its_ids(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = engine(tiny_model)
    (whole,) = served.sample(PROMPTS[:1], max_new_tokens=12, seed=1)
    assert not whole.ended
    assert len(whole.ids) == 12
    monkeypatch.setattr(chat, "stop_ids", lambda tokenizer: {whole.ids[6]})
    (cut,) = served.sample(PROMPTS[:1], max_new_tokens=12, seed=1)
    assert cut.ended
    assert cut.ids == whole.ids[: whole.ids.index(whole.ids[6]) + 1]


@needs_vllm
@pytest.mark.vllm
def test_the_model_of_a_folder_replaces_the_last_one(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path, tmp_path: Path
) -> None:
    """Other weights of the same shape, in full and as LoRA: the engine has those of the folder, and no others."""
    policy, tokenizer = checkpoints.load_policy(tiny_model)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    checkpoints.save(policy, tokenizer, tmp_path / "full")
    adapted = checkpoints.add_lora(checkpoints.load_policy(tiny_model)[0], checkpoints.LoraSettings(rank=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.5 * torch.randn_like(parameter)
    adapted.base_model.model.name_or_path = str(tiny_model)
    checkpoints.save(adapted, tokenizer, tmp_path / "lora")
    first = engine(tiny_model)
    scores = []
    for name in (tiny_model, tmp_path / "full", tmp_path / "lora", tiny_model):
        scores.append(logprobs(engine(name), PROMPTS, ["A", "B"]))
        np.testing.assert_allclose(scores[-1], logprobs(here(name), PROMPTS, ["A", "B"]), atol=1e-4)
    np.testing.assert_array_equal(scores[0], scores[3])
    assert min(np.abs(scores[0] - scores[i]).max() for i in (1, 2)) > 0.01
    with pytest.raises(RuntimeError, match="another model was opened since"):
        first.sample(PROMPTS, max_new_tokens=1)


@needs_vllm
@pytest.mark.vllm
def test_labels_and_chains_run_on_the_engine(engine: Callable[..., vllm.VllmModel], tiny_model: Path) -> None:
    pairs = pd.DataFrame({"prompt": PROMPTS, "response_a": ["good"] * 5, "response_b": ["bad", "worse", "a", "b", "c"]})
    constitution = constitutions.load("default")

    def label(model: LanguageModel, cot: bool) -> pd.DataFrame:
        settings = {"cot": cot, "clamp": (0.4, 0.6), "cot_tokens": 6, "seed": 0}
        return ai_feedback.label(model, constitution, pairs, **settings).set_index("prompt").loc[PROMPTS]

    served, model = engine(tiny_model), here(tiny_model)
    numbers = ["p_a", "p_a_forward", "p_a_swapped", "mass"]
    np.testing.assert_allclose(label(served, False)[numbers], label(model, False)[numbers], atol=1e-5)
    reasoned = label(served, True)
    assert reasoned["p_a"].between(0.4, 0.6).all()
    assert (reasoned["reasoning"] != reasoned["reasoning_swapped"]).all()
    first = pd.DataFrame({"prompt": PROMPTS, "response": "Yes.", "ended": True})
    settings = {"arm": "x", "rounds": 2, "critique": True, "context": "chain", "replacement": False, "seed": 0}
    settings |= {"max_new_tokens": 6, "temperature": 0.0, "shots": False}
    chains = [critique_revise.run(m, constitution, first, **settings) for m in (served, model)]
    pd.testing.assert_frame_equal(*chains)


# ---------------------------------------------------------------- named draws


@needs_vllm
@pytest.mark.vllm
def test_a_response_is_a_function_of_its_name_whatever_the_batch(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path
) -> None:
    """In batches of 1, 7 and 64, and after a kill in the middle."""
    served = engine(tiny_model)
    prompts = [f"{PROMPTS[i % 5]} {i}" for i in range(64)]
    keys = [f"key {i}" for i in range(64)]

    def sampled(size: int) -> list[Sample]:
        parts = [slice(start, start + size) for start in range(0, 64, size)]
        return [s for part in parts for s in served.sample(prompts[part], max_new_tokens=8, seed=2, keys=keys[part])]

    whole = sampled(64)
    assert sampled(7) == whole
    assert sampled(1) == whole
    kept: dict[int, Sample] = {}

    def killed(index: list[int], samples: list[Sample]) -> None:
        kept.update(zip(index, samples, strict=True))
        if len(kept) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.sample(prompts, max_new_tokens=8, seed=2, keys=keys, on_batch=killed)
    rest = [i for i in range(64) if i not in kept]
    again = served.sample([prompts[i] for i in rest], max_new_tokens=8, seed=2, keys=[keys[i] for i in rest])
    assert [(kept | dict(zip(rest, again, strict=True)))[i] for i in range(64)] == whole
    assert served.sample(prompts, max_new_tokens=8, seed=3, keys=keys) != whole


def long_prompt(tokenizer: object) -> str:
    """A prompt that fills a block of the prefix cache and little more, so that it is read once for all draws."""
    prompt = PROMPTS[0]
    while len(chat.encode_prompt(tokenizer, prompt)) % 128 not in (1, 2, 3):
        prompt += " Why?"
    return prompt


def frequencies(model: vllm.VllmModel, exact: np.ndarray, n: int = 2000) -> float:
    """p of a chi-squared test of the first tokens of `n` draws against `exact` probabilities, in at most 40 bins."""
    drawn = model.sample([long_prompt(model.tokenizer)] * n, max_new_tokens=1, seed=5, keys=[str(i) for i in range(n)])
    order = np.argsort(-exact)
    bins = np.minimum((np.cumsum(exact[order]) - exact[order] / 2) * 40, 39).astype(int)
    bins = np.unique(bins, return_inverse=True)[1]
    bin_of = np.empty(len(exact), dtype=int)
    bin_of[order] = bins
    counts = np.bincount(bin_of[[s.ids[0] for s in drawn]], minlength=bins.max() + 1)
    expected = np.bincount(bin_of, weights=exact) * n
    kept = expected >= 5
    observed, wanted = counts[kept], expected[kept]
    if not kept.all():
        observed, wanted = np.append(observed, counts[~kept].sum()), np.append(wanted, expected[~kept].sum())
    return float(stats.chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue)


def exact(model: Generator) -> np.ndarray:
    ids = chat.encode_prompt(model.tokenizer, long_prompt(model.tokenizer))
    return torch.softmax(model.model(torch.tensor([ids])).logits[0, -1].detach().double(), -1).numpy()


@needs_vllm
@pytest.mark.vllm
def test_sampled_frequencies_follow_the_model(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path, tmp_path: Path
) -> None:
    policy, tokenizer = checkpoints.load_policy(tiny_model)
    policy.model.norm.weight.data *= 12  # a model that knows what it wants
    checkpoints.save(policy, tokenizer, tmp_path / "sharp")
    wanted = exact(here(tmp_path / "sharp"))
    served = engine(tmp_path / "sharp")
    assert frequencies(served, wanted) > 0.001
    assert frequencies(served, np.sqrt(wanted) / np.sqrt(wanted).sum()) < 1e-6  # the test can tell


# ---------------------------------------------------------------- errors


@needs_vllm
@pytest.mark.vllm
def test_a_prompt_beyond_the_context_is_one_line(engine: Callable[..., vllm.VllmModel], tiny_model: Path) -> None:
    served = engine(tiny_model)
    with pytest.raises(
        UserError, match=r"a prompt of 40\d\d tokens and an answer of up to 99 are more than its context of 4096"
    ):
        served.sample(["x" * 4000, "y"], max_new_tokens=99)
    assert served.sample(["y"], max_new_tokens=1)  # nothing was left behind in the engine


@needs_vllm
@pytest.mark.vllm
def test_models_that_cannot_start_are_one_line(
    engine: Callable[..., vllm.VllmModel], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    import shutil

    shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"architectures": ["Unheard"], "head_dim": 16}))
    with pytest.raises(UserError, match=r"engine vllm: .*odd: vLLM does not run this architecture"):
        engine(tmp_path / "odd")
    monkeypatch.setattr(vllm_engine, "_KV_CACHE", 1 << 50)
    vllm.release()
    with pytest.raises(UserError, match=r"engine vllm: .*tiny: not enough memory to start"):
        engine(tiny_model)


# ---------------------------------------------------------------- the embedded model, and a real server


@needs_vllm
@pytest.mark.vllm
@pytest.mark.model
def test_the_embedded_model_is_the_same_on_both_engines(engine: Callable[..., vllm.VllmModel]) -> None:
    """200 continuations: log-probabilities, frequencies; the same ones in batches of 1, 7 and 64 and after a kill."""
    served, model = engine("embedded"), here("embedded")
    rows = [chat.encode_prompt(model.tokenizer, f"{PROMPTS[i % 5]} ({i})") for i in range(200)]
    keys = [f"key {i}" for i in range(200)]
    settings = {"seed": 3, "max_new_tokens": 8, "temperature": 1.0}
    ids, logprobs = served.rollout(rows, update=0, keys=keys, **settings)
    for start in range(0, 200, 50):
        part = range(start, start + 50)
        width = max(len(rows[i]) + len(ids[i]) for i in part)
        padded = torch.tensor([[0] * (width - len(rows[i] + ids[i])) + rows[i] + ids[i] for i in part])
        mask = torch.tensor([[0] * (width - len(rows[i] + ids[i])) + [1] * len(rows[i] + ids[i]) for i in part])
        with torch.inference_mode():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model.model(padded, attention_mask=mask, position_ids=positions, logits_to_keep=9).logits
        scores = torch.log_softmax(logits.float(), -1)[:, :-1]
        for row, i in enumerate(part):
            n = len(ids[i])
            found = scores[row, -n:].gather(1, torch.tensor(ids[i])[:, None])[:, 0].numpy()
            np.testing.assert_allclose(logprobs[i], found, atol=1e-3)
    assert frequencies(served, exact(model)) > 0.001
    for size in (1, 7, 64):
        parts = [slice(start, min(start + size, 64)) for start in range(0, 64, size)]
        again = [row for part in parts for row in served.rollout(rows[part], update=0, keys=keys[part], **settings)[0]]
        assert again == ids[:64], size
    prompts, kept = [f"{PROMPTS[i % 5]} ({i})" for i in range(64)], dict[int, Sample]()

    def killed(index: list[int], samples: list[Sample]) -> None:
        kept.update(zip(index, samples, strict=True))
        if len(kept) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.sample(prompts, keys=keys[:64], on_batch=killed, **settings)
    left = [i for i in range(64) if i not in kept]
    kept |= zip(left, served.sample([prompts[i] for i in left], keys=[keys[i] for i in left], **settings), strict=True)
    assert [list(kept[i].ids) for i in range(64)] == ids[:64]


def die_with_parent() -> None:
    """In a child: end when a test run that is killed can no longer stop it (prctl's PR_SET_PDEATHSIG is 1; Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@pytest.fixture
def served_model(tmp_path: Path) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server on the embedded model, as server:URL#MODEL."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoints.resolve("embedded")]
    command += ["--served-model-name", "ours", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(512 << 20)]
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, preexec_fn=die_with_parent)
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.5)
            yield f"server:http://127.0.0.1:{port}/v1#ours"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@needs_vllm
@pytest.mark.vllm
@pytest.mark.model
def test_a_real_server_labels_and_answers_hhh_as_the_model_does_here(served_model: str) -> None:
    pairs = pd.DataFrame(
        {"prompt": PROMPTS, "response_a": ["I do not know."] * 5, "response_b": ["Yes.", "No.", "Pine.", "Oak.", "Hi."]}
    )
    questions = pd.DataFrame(
        {
            "comparison": range(5),
            "question": [f"Human: {prompt}" for prompt in PROMPTS],
            "asked": hhh.PRINCIPLE,
            "right": ["Air scatters blue light most.", "Gladly.", "Waves, wind, salt and sky.", "Hello!", "Spruce."],
            "wrong": ["No idea.", "Go away.", "No.", "What?", "Stone."],
            "right_first": [True] * 5,
            "subset": ["helpful"] * 5,
        }
    )

    def measured(model: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
        settings = {"cot": False, "clamp": None, "cot_tokens": 6, "seed": 0, "shots": False}
        labels = ai_feedback.label(model, constitutions.load("default"), pairs, **settings)
        answered = hhh.run(questions, model).tables["questions"]
        return labels.set_index("prompt").loc[PROMPTS], answered

    server = open_model(served_model, choosing=True)
    samples = server.sample(PROMPTS, max_new_tokens=5, seed=1)
    assert samples == server.sample(PROMPTS, max_new_tokens=5, seed=1)
    (labels, answered), (own_labels, own_answered) = measured(server), measured(here("embedded"))
    np.testing.assert_allclose(labels["p_a"], own_labels["p_a"], atol=0.02)
    np.testing.assert_allclose(answered["p_correct"], own_answered["p_correct"], atol=0.02)
    assert answered["correct"].tolist() == own_answered["correct"].tolist()
