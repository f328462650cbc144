"""Chat completions of a real server: whole, in parts, and what becomes of a stream that a request or a death overtakes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.servers import Server, servers
from tests.service.chat_model import train

pytestmark = pytest.mark.nightly
MESSAGES = [{"role": "user", "content": "w5 w9 w33"}]


def events_of(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line:
            yield json.loads(line.removeprefix("data: ")) if line != "data: [DONE]" else None


def url(server: Server, path: str = "/v1/chat/completions") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def ask(server: Server, **body: Any) -> httpx.Response:
    return httpx.post(url(server), json={"messages": MESSAGES, "temperature": 0, **body}, timeout=120)


def text_of(events: list[Any]) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event)


def test_a_server_of_a_language_model(tmp_path: Path) -> None:
    store = tmp_path / "store"
    train(store)
    settings = {
        "model": "tests.service.chat_model:LanguageModel",
        "chat": {"tokenizer": "tests.service.chat_model:make_tokenizer", "name": "tiny", "max_tokens": 1900},
        "timeout": 15.0,
        "renew_every": None,
    }
    with servers(tmp_path, store, 1, **settings) as (server,):
        whole = ask(server, max_tokens=12)
        assert whole.status_code == 200, whole.text
        assert whole.headers["x-s3t-request"] == "0"
        with httpx.stream(
            "POST", url(server), json={"messages": MESSAGES, "temperature": 0, "stream": True, "max_tokens": 12}
        ) as response:
            events = list(events_of(response))
        assert events[-1] is None
        assert text_of(events) == whole.json()["choices"][0]["message"]["content"]
        assert httpx.get(url(server, "/v1/models")).json()["data"][0]["id"] == "tiny"
        assert ask(server, model="another").json()["error"]["code"] == "unknown_model"
        assert ask(server, tools=[]).status_code == 422
        assert ask(server, n=2).json()["error"]["message"] == "The model does not take this request: see n."
        assert ask(server, messages=[{"role": "user", "content": "w5 " * 2000}]).json()["error"]["code"] == "too_long"
        assert httpx.post(url(server), content=b"{").status_code == 422
        assert httpx.post(url(server, "/predict"), json={}).status_code == 404

        body = {"messages": MESSAGES, "temperature": 0, "stream": True}
        with httpx.stream("POST", url(server), json=body, timeout=60) as response:
            begun = events_of(response)
            first = [next(begun) for _ in range(5)]
            assert server.ask("user-3").status_code == 200
            rest = list(begun)
        assert text_of(first)
        assert rest[-1]["error"]["code"] == "overtaken"
        assert len(rest) < 1000
        after = ask(server, max_tokens=12)
        assert after.headers["x-s3t-request"] == "1"

        with httpx.stream("POST", url(server), json=body, timeout=60) as response:
            begun = events_of(response)
            next(begun)
            os.kill(server.worker(), signal.SIGKILL)
            rest = list(begun)
        assert rest[-1]["error"]["code"] == "timed_out"
        again = ask(server, max_tokens=12)  # while a stream was open, the worker was started again
        while again.status_code == 503:
            again = ask(server, max_tokens=12)
        assert again.json()["choices"] == after.json()["choices"]
        counted = server.metrics()
        assert counted["s3t_answers_total", "/v1/chat/completions", "200"] >= 5
    assert not re.search(r"user-\d|w33|Traceback", Path(server.log.name).read_text())
