"""Chat completions: the ensemble writes, in OpenAI's form, and no stream goes on from what was revoked."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.responses import StreamingResponse

from lightning_s3t.errors import ConfigurationError, LedgerUnreachableError
from lightning_s3t.service import ServiceSettings
from lightning_s3t.service.chat import ChatBody, respond
from lightning_s3t.service.replicas import Refused
from lightning_s3t.service.writing import Part, Prompt, Writing
from lightning_s3t.serving import EnsemblePredictor, Replica
from lightning_s3t.store import Store
from tests.service.chat_model import LanguageModel, make_tokenizer, train

MESSAGES = [{"role": "user", "content": "w5 w9 w33"}]
GREEDY = Prompt(MESSAGES, tokens=12, temperature=0)
PEOPLE = [f"user-{number}" for number in range(20)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("chat") / "store"
    train(store)
    return store


@pytest.fixture
def replica(trained: Path, tmp_path: Path) -> Iterator[Replica]:
    with Replica.from_store(shutil.copytree(trained, tmp_path / "store"), LanguageModel(), renew_every=None) as opened:
        yield opened


@pytest.fixture
def writing(replica: Replica) -> Writing:
    return Writing(replica, make_tokenizer(), max_tokens=300)


def expected(replica: Replica, tokens: int = 12) -> str:
    ids = make_tokenizer()(MESSAGES[0]["content"], return_tensors="pt")["input_ids"]
    text = replica.served.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=1)
    return make_tokenizer().decode(text[0, ids.shape[1] :], skip_special_tokens=True)


def text_of(parts: Iterable[Part | Refused]) -> str:
    found = list(parts)
    assert all(isinstance(part, Part) for part in found), found
    return "".join(part.text for part in found if isinstance(part, Part))


def test_the_ensemble_writes_whole_and_in_parts(writing: Writing, replica: Replica) -> None:
    whole = writing.whole(GREEDY)
    assert isinstance(whole, Part)
    assert whole.text == expected(replica)
    assert (whole.finish, whole.prompt_tokens, whole.tokens, whole.request) == ("length", 3, 12, 0)
    parts = list(writing.stream(GREEDY))
    assert len(parts) > 3
    assert text_of(parts) == whole.text
    assert [part.finish for part in parts if isinstance(part, Part)] == [None] * (len(parts) - 1) + ["length"]


def test_it_stops_before_a_text_and_lets_no_part_of_it_through(writing: Writing, replica: Replica) -> None:
    words = expected(replica).split()
    stop = " ".join(words[4:6])
    before = expected(replica).split(stop)[0]
    part = writing.whole(Prompt(MESSAGES, 200, 0, stops=[stop, "never"]))
    assert isinstance(part, Part)
    assert (part.text, part.finish) == (before, "stop")
    assert text_of(writing.stream(Prompt(MESSAGES, 200, 0, stops=[stop]))) == before


def test_draws_repeat_with_a_seed(writing: Writing) -> None:
    def drawn(seed: int) -> str:
        return text_of(writing.stream(Prompt(MESSAGES, 12, temperature=1.5, top_p=0.9, seed=seed)))

    first = drawn(1)
    assert first == drawn(1)
    assert len({first, drawn(2), drawn(3)}) > 1


def test_draws_without_a_seed_do_not_follow_from_an_earlier_prompt(writing: Writing) -> None:
    def drawn(seed: int | None) -> str:
        return text_of(writing.stream(Prompt(MESSAGES, 12, temperature=2.0, seed=seed)))

    after = [(drawn(1), drawn(None))[1] for _ in range(3)]
    assert len(set(after)) > 1


@pytest.mark.parametrize("max_staleness", [0.0, 0.4])
def test_a_stream_does_not_go_on_after_a_request_has_returned(
    trained: Path, tmp_path: Path, max_staleness: float
) -> None:
    store = Path(shutil.copytree(trained, tmp_path / "store"))
    with Replica.from_store(store, LanguageModel(), max_staleness) as replica, Store.open(store) as elsewhere:
        writing = Writing(replica, make_tokenizer(), 300)
        parts = writing.stream(Prompt(MESSAGES, 300, 0))
        first = [next(parts) for _ in range(3)]
        assert all(isinstance(part, Part) for part in first)
        elsewhere.forget(["user-3"])
        (last,) = parts  # not even a part that was written before the request
        assert isinstance(last, Refused)
        assert (last.status, last.code) == (503, "overtaken")
        after = writing.whole(GREEDY)
        assert isinstance(after, Part)
        assert (after.text, after.request) == (expected(replica), 1)


def test_a_text_of_which_nothing_has_left_is_begun_again(writing: Writing, replica: Replica) -> None:
    written: list[str] = []
    write = writing._write

    def overtaken(served: EnsemblePredictor, *arguments: Any) -> Iterator[Part]:
        for part in write(served, *arguments):
            written.append(part.text)
            if len(written) == 1:
                with Store.open(replica.served.store.path) as elsewhere:
                    elsewhere.forget(["user-3"])
            yield part

    writing._write = overtaken  # type: ignore[method-assign]
    before = expected(replica)
    after = text_of(writing.stream(GREEDY))
    assert after == expected(replica) != before
    written.clear()
    assert isinstance(whole := writing.whole(GREEDY), Part)
    assert whole.text == after


def test_what_cannot_be_written_is_refused(writing: Writing, replica: Replica) -> None:
    def code(prompt: Prompt) -> tuple[int, str]:
        (streamed,), whole = list(writing.stream(prompt)), writing.whole(prompt)
        assert streamed == whole
        assert isinstance(whole, Refused)
        return whole.status, whole.code

    assert code(Prompt([{"role": "user", "content": "w5 " * 2000}])) == (422, "too_long")
    assert code(Prompt([{"role": "user", "content": " "}])) == (422, "too_long")
    look = replica.served._look

    def cut_off() -> int:
        raise LedgerUnreachableError("postgresql://somewhere")

    replica.served.look_with(cut_off)
    assert code(GREEDY) == (503, "unreachable")
    replica.served.look_with(look)
    replica.forget(PEOPLE)
    assert code(GREEDY) == (503, "no_survivor")


def test_models_that_do_not_write_are_refused_at_the_start(writing: Writing, replica: Replica) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="no chat template"):
        Writing(replica, tokenizer, 10)
    replica.served.module.network.generation_config = None
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM cannot generate"):
        Writing(replica, make_tokenizer(), 10)
    with pytest.raises(ValidationError, match="neither `decode`"):
        ServiceSettings.model_validate({"model": "a:b", "encode": "a:c", "chat": {"tokenizer": "a:d"}})


def answered(body: dict[str, Any], parts: Iterable[Part | Refused]) -> tuple[int, Any, dict[str, str]]:
    """The status of a response, its JSON or its events, and its headers."""

    async def source() -> AsyncGenerator[Part | Refused, None]:
        for part in parts:
            yield part

    async def collect() -> tuple[int, Any, dict[str, str]]:
        found = await respond(ChatBody.model_validate({"messages": MESSAGES, **body}), "tiny", source())
        headers = dict(found.headers)
        if not isinstance(found, StreamingResponse):
            return found.status_code, json.loads(bytes(found.body)), headers
        text = "".join([str(chunk) async for chunk in found.body_iterator])
        assert text.endswith("\n\n")
        return found.status_code, [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]], headers

    return asyncio.run(collect())


def test_an_answer_has_openais_form(writing: Writing, replica: Replica) -> None:
    status, answer, headers = answered({}, [writing.whole(GREEDY)])
    assert (status, headers["x-s3t-request"], answer["object"], answer["model"]) == (
        200,
        "0",
        "chat.completion",
        "tiny",
    )
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected(replica)}
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}


def test_a_stream_has_openais_form(writing: Writing, replica: Replica) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    status, events, headers = answered(options, writing.stream(GREEDY))
    assert (status, events.pop(), headers["content-type"]) == (200, "[DONE]", "text/event-stream; charset=utf-8")
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks.pop()["usage"]["completion_tokens"] == 12
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == expected(replica)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_that_breaks_off_ends_with_an_error_event(writing: Writing) -> None:
    part = Part("w7 ", 0, None, 3, 1)
    for rest, code in (([Refused(503, "overtaken", "Ask again.")], "overtaken"), ([], "timed_out")):
        status, events, _ = answered({"stream": True}, [part, *rest])
        assert status == 200
        assert json.loads(events[-1])["error"]["code"] == code
        assert not any('"stop"' in event or '"length"' in event or event == "[DONE]" for event in events)
    status, answer, headers = answered({"stream": True}, [Refused(503, "unreachable", "Ask again.")])
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "unreachable", "1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"presence_penalty": 0.5},
        {"response_format": {"type": "json_object"}},
        {"temperature": -1},
        {"max_tokens": 0},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
    ],
)
def test_what_it_does_not_do_is_refused_and_not_ignored(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatBody.model_validate({"messages": MESSAGES, **wrong})


def test_content_may_be_in_parts() -> None:
    content = [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w9"}]
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": content}], "max_completion_tokens": 4})
    assert body.prompt() == Prompt([{"role": "user", "content": "w5 w9"}], 4)
