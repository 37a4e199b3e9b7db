"""A server that is dead, silent, hostile or talkative: bounded, told in seconds, and no key in any message."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.errors import UserError
from harness.experiment import load
from harness.models import server
from harness.models.server import ServerGenerator
from suites import judges
from tests.fake_server import Reply, Serve

PAIRS = pd.DataFrame({"prompt": ["p", "p"], "response": ["a", "b"], "arm": ["x", "y"], "sample": [0, 0]})
Ask = Callable[[str], object]
ASKS: dict[str, Ask] = {
    "sample": lambda url: ServerGenerator(url, "m").sample(["hi"], max_new_tokens=4),
    "check": lambda url: ServerGenerator(url, "m").check(),
    "judge": lambda url: judges.from_server(PAIRS, url, "m"),
}


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    held.append(listening.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        for connection in held:
            connection.close()


@pytest.mark.parametrize("how", ASKS)
def test_a_dead_server_is_told_in_seconds(how: str, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"no answer.*check that the server is up"):
        ASKS[how]("http://127.0.0.1:9/v1")
    assert time.monotonic() - began < 10
    assert "trying again in 1 s" in caplog.text


@pytest.mark.parametrize("how", ASKS)
def test_a_silent_server_is_told_in_seconds(how: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_ANSWER", 0.2)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer"):
        ASKS[how](silent)
    assert time.monotonic() - began < 5
    assert server.FIRST_ANSWER == 0.2


def answer(**choice: Any) -> Reply:
    return 200, {"choices": [{"message": {"content": "A"}} | choice]}, {}


@pytest.mark.parametrize("asked", ["9" * 400, "99999999", "²", "-1", "soon", "1e9"])
def test_a_pause_that_a_server_asks_for_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(server.time, "sleep", pauses.append)
    header = asked.encode("utf-8").decode("latin-1")
    fake = serve(lambda n, body: (429, "later", {"Retry-After": header}) if n == 0 else answer())
    ServerGenerator(fake.url, "m").sample(["hi"], max_new_tokens=4)
    assert len(pauses) == 1
    assert 0 <= pauses[0] <= 60


def test_a_key_in_an_errors_body_is_left_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "my-own-secret-key")
    body = {"error": "bad key Bearer sk-abcdef123456 or my-own-secret-key"}
    fake = serve(lambda n, _: (401, body, {}))
    with pytest.raises(UserError) as caught:
        ServerGenerator(fake.url, "m").sample(["hi"], max_new_tokens=4)
    assert "bad key" in str(caught.value)
    assert "sk-abcdef123456" not in str(caught.value)
    assert "my-own-secret-key" not in str(caught.value)


@pytest.mark.parametrize("key", ["kéy", "two words", "a\nb", "\x00"])
def test_a_key_that_no_header_can_hold(serve: Serve, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    if "\x00" in key:
        monkeypatch.setattr(server.os, "environ", {"CAI_API_KEY": key})
    else:
        monkeypatch.setenv("CAI_API_KEY", key)
    with pytest.raises(UserError, match="CAI_API_KEY"):
        server.api_key()


def test_a_key_with_a_line_feed_at_its_end_is_that_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_API_KEY", "secret\n")
    assert server.api_key() == "secret"


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@h/v1", "https://hunter2@h/v1", "http://h/v1?api_key=hunter2", "http://h/v1?x=1"]
)
def test_credentials_in_an_address_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CAI_API_KEY") as caught:
        server.address(f"server:{url}#m")
    assert "hunter2" not in str(caught.value)
    file = tmp_path / "x.yaml"
    file.write_text(f"name: x\nmodels: {{feedback: 'server:{url}#m'}}")
    with pytest.raises(UserError, match="CAI_API_KEY"):
        load(file)


@pytest.mark.parametrize("key", ["models: {{base: '{}'}}", "data: {{hh_rlhf: '{}'}}", "data: {{redteam_prompts: '{}'}}",
                                 "constitution: '{}'", "methods: ['{}']"])  # fmt: skip
def test_no_name_in_an_experiment_holds_a_password(tmp_path: Path, key: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"name: x\n{key.format('https://user:hunter2@host/x')}\n")
    with pytest.raises(UserError, match="HF_TOKEN"):
        load(file)


@pytest.mark.parametrize("usage", [{"total_tokens": "many"}, {"total_tokens": -5}, {"total_tokens": True}, "x", [1], 3,
                                   {"total_tokens": 1e30}])  # fmt: skip
def test_a_strange_count_of_tokens_is_no_count(serve: Serve, usage: Any) -> None:
    fake = serve(lambda n, body: (200, {"choices": [{"message": {"content": "A"}}], "usage": usage}, {}))
    model = ServerGenerator(fake.url, "m")
    assert model.sample(["hi"], max_new_tokens=4)[0].text == "A"
    assert model.tokens == 0


@pytest.mark.parametrize("content", ["\ud800", "a\x00b", ["x"], {"a": 1}, 5, "\x1b[2J"])
def test_what_a_server_says_can_be_stored(serve: Serve, tmp_path: Path, content: Any) -> None:
    fake = serve(lambda n, body: answer(message={"content": content}))
    (sample,) = ServerGenerator(fake.url, "m").sample(["hi"], max_new_tokens=4)
    pd.DataFrame({"response": [sample.text]}).to_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize("logprob", [float("nan"), "x", None, 5.0, float("inf"), 10**400])
def test_a_log_probability_that_is_none_is_passed_over(serve: Serve, logprob: Any) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        top = [{"token": "A", "logprob": -0.5}, {"token": "B", "logprob": -1.0}, {"token": "C", "logprob": logprob}]
        return answer(logprobs={"content": [top[0] | {"top_logprobs": top}]})

    (choice,) = ServerGenerator(serve(reply).url, "m").choose(["hi"], ["A", "B"])
    assert np.isfinite(choice.logprobs).all()
