"""A feedback model behind an OpenAI-compatible server (vLLM: `vllm serve MODEL`), asked over chat completions.

`ServerGenerator` is the `LanguageModel` over HTTP, named `server:URL#MODEL`; the key, where the server wants one, is in
the environment variable CAI_API_KEY or OPENAI_API_KEY.
Samples are seeded by (seed, key), but how far a server repeats them is its own affair.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from harness import text
from harness.draws import request_seed
from harness.errors import UserError, one_line
from harness.models import chat, inert
from harness.models.base import Choice, OneTurn, Prompt, Sample

T = TypeVar("T")
FIRST_ANSWER = 10.0  # seconds until a server must have said anything at all
_FIRST_TRIES = 2
_LONGEST_PAUSE = 60.0  # seconds, whatever a server asks for
_LOG = logging.getLogger(__name__)
_said = -1.0  # when the last pause was told
_PREFIX = "server:"
_TOP = 20  # tokens whose log-probabilities are asked for: what OpenAI and vLLM give at most
_LEAST = -100.0  # nats; some servers write -9999 for what cannot be
_AROUND = " \t\n\r()[]{}<>\"'*_`.,:;\u2581\u0120"  # what tokens carry around a letter, old space marks too
# The model's own distribution: without these, vLLM takes top-k and top-p from the model's generation_config.json.
_UNTRUNCATED = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def is_server(name: str) -> bool:
    """Whether a model's name says that it is behind a server."""
    return name.startswith(_PREFIX)


def address(name: str) -> tuple[str, str]:
    """(URL, model) of `server:URL#MODEL`. Raises UserError for what is not one, and for a key or password in it."""
    url, _, model = name.removeprefix(_PREFIX).partition("#")
    if text.holds_credentials(url) or "?" in url:
        shown = text.redact(url.partition("?")[0])
        raise UserError(
            f"{shown}: an address with a password, key or query in it would be stored with the results; take it out "
            "and set the environment variable CAI_API_KEY"
        )
    if not re.match(r"https?://[^/]", url) or not model:
        raise UserError(f"{name}: not a server's model; write server:URL#MODEL, as server:http://localhost:8000/v1#Q")
    return url, model


def api_key() -> str | None:
    """The server's key, from the environment. Raises UserError where no header can hold it."""
    for name in ("CAI_API_KEY", "OPENAI_API_KEY"):
        if key := os.environ.get(name, "").strip():
            if not re.fullmatch("[!-~]+", key):
                raise UserError(f"{name}: the key holds spaces or characters that no key has; set it again")
            return key
    return None


@dataclass
class ServerGenerator(OneTurn):
    """The model `model` behind `url` (ends in /v1), asked by `workers` threads. `tokens` counts read and written ones.

    Rate limits and server errors are retried as `ask` does. Every method raises UserError when the server refuses,
    stays away or replies with something else.
    """

    url: str
    model: str
    workers: int = 32
    retries: int = 6
    backoff: float = 1.0  # seconds
    timeout: float = 600.0  # seconds; a request may wait in the server's queue
    tokens: int = 0
    parameters: None = field(default=None, init=False, repr=False)  # a server does not say
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def check(self) -> None:
        """Ask one question, without patience. Raises UserError also where labels could not be read from the answers:
        no log-probabilities, or an answer that was begun for the model is not continued.
        """
        question = [{"role": "user", "content": "Which one is a fruit?\n\nOptions:\n(A) An apple\n(B) A brick"}]
        once = replace(self, retries=0)
        ((_, top),) = once._asked(1, lambda post, _: self._top(post, question, "The answer is: ("))
        if np.isneginf(_found(top, ("A", "B"))).all():
            raise UserError(
                f"{self.url}: {self.model} does not continue an answer that was begun for it; serve it with vLLM, "
                "whose chat completions take continue_final_message"
            )

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
        """As in the protocol; each conversation is held by a thread, its turns sent as text."""
        results: dict[int, list[Sample]] = {}

        def hold(post: _Post, i: int) -> list[Sample]:
            said = chat.messages(prompts[i])
            answers: list[Sample] = []
            for request, key in zip((None, *requests[i]), keys[i], strict=True):
                if request is not None:
                    said += [{"role": "assistant", "content": answers[-1].text}, {"role": "user", "content": request}]
                answers.append(self._sampled(post, said, max_new_tokens, temperature, request_seed(seed, key)))
            return answers

        for i, answers in self._asked(len(prompts), hold):
            results[i] = answers
            if on_batch is not None:
                on_batch([i], [answers])
        return [results[i] for i in range(len(prompts))]

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
        """As in the protocol, read by `read_choices`; groups of `together` prompts come as they are finished.

        Brackets that all choices begin with are given: for "(A)" and "(B)", the log-probabilities of "A" and "B"
        after "(".
        """
        names = keys if keys is not None else [str(i) for i in range(len(prompts))]
        given = {choice[: len(choice) - len(choice.lstrip(_AROUND))].strip() for choice in choices}
        begun = lead + (given.pop() if len(given) == 1 else "")
        results: dict[int, Choice] = {}

        def group(post: _Post, g: int) -> tuple[list[int], list[Choice]]:
            index = list(range(len(prompts)))[g * together : (g + 1) * together]
            found = []
            for i in index:
                said = chat.messages(prompts[i])
                if think:
                    reasoning = self._sampled(post, said, think, 1.0, request_seed(seed, names[i]), opening)
                    top = self._top(post, said, f"{opening} {reasoning.text}".lstrip() + begun)
                else:
                    reasoning, top = None, self._top(post, said, begun)
                found.append(Choice(read_choices(top, choices), reasoning))
            return index, found

        for _, (index, found) in self._asked(-(-len(prompts) // together), group):
            results |= dict(zip(index, found, strict=True))
            if on_batch is not None:
                on_batch(index, found)
        return [results[i] for i in range(len(prompts))]

    def _sampled(
        self,
        post: _Post,
        messages: Sequence[chat.Message],
        max_tokens: int,
        temperature: float,
        seed: int,
        opening: str = "",
    ) -> Sample:
        asked = _begun(messages, opening) | {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        reply = post(asked | _UNTRUNCATED)
        message = reply["choices"][0]["message"]
        if message.get("content") is None and (message.get("reasoning") or message.get("reasoning_content")):
            raise UserError(
                f"{self.url}: {self.model} thinks for more than {max_tokens} tokens before it answers; raise that "
                "limit (feedback.cot_tokens), or serve it without thinking"
            )
        said = text_of(reply)
        own = chat.clean(said)
        return Sample(own, reply["choices"][0].get("finish_reason") != "length" or own != said.strip())

    def _top(self, post: _Post, messages: Sequence[chat.Message], lead: str) -> list[tuple[str, float]]:
        """The likeliest tokens and their log-probabilities, where the answer goes on after its beginning `lead`."""
        asked = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": _TOP} | _UNTRUNCATED
        reply = post(_begun(messages, lead) | asked)
        try:
            listed = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            top = [(str(entry["token"]), max(found, _LEAST)) for entry in listed if (found := _logprob(entry)) <= 0.01]
        except (KeyError, IndexError, TypeError, AttributeError):
            top = []
        if not top:
            raise UserError(
                f"{self.url}: this server gives no logprobs for {self.model}, which labels are read from; "
                "serve the model with vLLM (`cai eval` can also judge by --judge words:URL#MODEL)"
            )
        return top

    def _asked(self, n: int, job: Callable[[_Post, int], T]) -> Iterator[tuple[int, T]]:
        """(i, job(post, i)) for i below n, as they are finished; after an error no further one is begun."""
        import httpx

        key = api_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.workers)
        url = self.url.rstrip("/") + "/chat/completions"
        with (
            httpx.Client(headers=headers, timeout=httpx.Timeout(self.timeout, connect=10), limits=limits) as client,
            ThreadPoolExecutor(self.workers) as pool,
        ):
            reach(client, self.url, backoff=self.backoff)

            def post(body: dict[str, Any]) -> Any:
                reply = ask(client, url, {"model": self.model} | body, retries=self.retries, backoff=self.backoff)
                with self._lock:
                    self.tokens += _tokens(reply)
                return reply

            futures = {pool.submit(job, post, i): i for i in range(n)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _begun(messages: Sequence[chat.Message], opening: str) -> dict[str, Any]:
    """Part of a request: the answer goes on after its beginning `opening`."""
    said = [*messages, {"role": "assistant", "content": opening}] if opening else messages
    # A server reads control tokens in contents as such; which ones it has is not known here.
    asked: dict[str, Any] = {"messages": [m | {"content": inert.break_up(m["content"])} for m in said]}
    return asked | {"add_generation_prompt": False, "continue_final_message": True} if opening else asked


_Post = Callable[[dict[str, Any]], Any]  # the body of a request -> the reply


def read_choices(top: Sequence[tuple[str, float]], choices: Sequence[str]) -> np.ndarray:
    """Log-probability (k,) of each choice from the likeliest tokens, in nats: the sum over the tokens that begin it and
    no other choice, spaces, brackets and punctuation aside.

    A choice that is not among them gets the least of their log-probabilities, an upper bound: the true label is more
    decided than the one read. Where none is among them all are equal, and their sum bounds what they weigh together.
    """
    bare = [choice.strip(_AROUND) for choice in choices]
    if any(not a or (i != j and b.startswith(a)) for i, a in enumerate(bare) for j, b in enumerate(bare)):
        raise UserError(f"choices {list(choices)}: a server's first token must tell them apart; name them A, B, ...")
    scores = _found(top, bare)
    return np.where(np.isneginf(scores), min(logprob for _, logprob in top), scores)


def _found(top: Sequence[tuple[str, float]], bare: Sequence[str]) -> np.ndarray:
    """Log-probability (k,) of each choice among the tokens of `top`; minus infinity where it is not there."""
    scores = np.full(len(bare), -np.inf)
    for token, logprob in top:
        letter = token.strip(_AROUND)
        fits = [j for j, choice in enumerate(bare) if letter and choice.startswith(letter)]
        if len(fits) == 1:
            scores[fits[0]] = np.logaddexp(scores[fits[0]], logprob)
    return scores


def _logprob(entry: Any) -> float:
    """The entry's log-probability in nats, infinity where it has none."""
    try:
        found = float(entry["logprob"])
    except (TypeError, ValueError, OverflowError):
        return np.inf
    return np.inf if np.isnan(found) else found


def _tokens(reply: Any) -> int:
    """Tokens read and written, as the server counts them; 0 where it does not."""
    usage = reply.get("usage")
    count = usage.get("total_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and count > 0 else 0


def text_of(reply: Any) -> str:
    """The answer in a chat completion as `ask` gives it; empty where there is none."""
    content = str(reply["choices"][0]["message"].get("content") or "")
    return content.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be stored


def reach(client: Any, url: str, *, backoff: float = 1.0) -> None:
    """Find out within seconds whether anything answers at `url`, before `ask` is patient with it. Raises UserError."""
    import httpx

    for attempt in range(_FIRST_TRIES):
        try:
            client.get(url.rstrip("/") + "/models", timeout=httpx.Timeout(FIRST_ANSWER, connect=FIRST_ANSWER / 2))
            return  # whatever it says: it is there
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise UserError(f"{url}: not an address; give one such as http://localhost:8000/v1") from None
        except httpx.TransportError as error:
            problem = f"no answer ({type(error).__name__})"
        if attempt < _FIRST_TRIES - 1:
            _pause(url, problem, backoff)
    raise UserError(f"{url}: {problem}, after {_FIRST_TRIES} tries; check that the server is up, or try later")


def _pause(url: str, problem: str, seconds: float) -> None:
    """Wait, and say so, once where many threads do."""
    global _said
    if time.monotonic() - _said > 1:
        _said = time.monotonic()
        _LOG.warning("%s: %s; trying again in %g s", text.redact(url), problem, seconds)
    time.sleep(seconds)


def ask(client: Any, url: str, body: dict[str, Any], *, retries: int, backoff: float) -> Any:
    """The chat completion (parsed JSON) that `url` replies to `body`; `client` is an httpx.Client.

    Rate limits and server errors (429, 5xx, broken connections) are retried with doubling pauses of `backoff` seconds,
    or what Retry-After asks. Raises UserError when they go on, the server refuses, or the reply is something else.
    """
    import httpx

    for attempt in range(retries + 1):
        pause = backoff * 2**attempt
        try:
            reply = client.post(url, json=body)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise UserError(f"{url}: not an address; give one such as http://localhost:8000/v1") from None
        except httpx.TransportError as error:
            problem = f"no answer ({type(error).__name__})"
        else:
            if reply.status_code == 200:
                return _completion(reply, url)
            problem = f"answered {reply.status_code}: {one_line(text.redact(reply.text))}"
            if reply.status_code != 429 and reply.status_code < 500:
                raise UserError(f"{url}: {problem}; check the address, the model name and the API key")
            asked = reply.headers.get("retry-after", "")
            pause = float(asked) if re.fullmatch("[0-9]{1,9}", asked) else pause
        if attempt < retries:
            _pause(url, problem, min(pause, _LONGEST_PAUSE))
    tries = f"{retries + 1} tries" if retries else "1 try"
    raise UserError(f"{url}: {problem}, after {tries}; check that the server is up, or try later")


def _completion(reply: Any, url: str) -> Any:
    try:
        content = reply.json()
        content["choices"][0]["message"].get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f"{url}: the reply is not a chat completion; is this an OpenAI-compatible server?") from None
    return content
