"""Chat completions at the prediction server, in OpenAI's form: whole answers, and streams of server-sent events.

LitServe's own OpenAISpec is not used, since it (0.2.19) never removes a request from its buffer, ignores what it does
not know, ends a stream at an error with an event that clients do not see, and answers 200 before it knows of an error.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal

import litserve
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from pydantic import BaseModel, ConfigDict, Field

from lightning_s3t.service.bodies import error_response
from lightning_s3t.service.replicas import TIMED_OUT, Refused, open_replica
from lightning_s3t.service.settings import ChatSettings, ServiceSettings, import_named
from lightning_s3t.service.writing import Part, Prompt, Writing

CHAT_PATH = "/v1/chat/completions"
_KEY = "LIT_SERVER_API_KEY"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextContent(_Section):
    """A part of a message.

    Attributes:
        type: "text".
        text: The text.
    """

    type: Literal["text"]
    text: str


class Message(_Section):
    """A message of a chat.

    Attributes:
        role: Who says it.
        content: What.
        name: Without effect.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextContent]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Return it as chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class StreamOptions(_Section):
    """Options of a stream.

    Attributes:
        include_usage: Whether the last event has the number of tokens.
        include_obfuscation: Without effect.
    """

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ResponseFormat(_Section):
    """The form of the answer.

    Attributes:
        type: "text".
    """

    type: Literal["text"]


class ChatBody(_Section):
    """A request for a chat completion. What it cannot have is refused, and not ignored.

    Attributes:
        messages: The chat so far.
        model: The model's name (`chat.name`).
        stream: Whether to send the answer in parts.
        stream_options: Options of the stream.
        max_tokens: The largest number of tokens to write.
        max_completion_tokens: Likewise; this one counts if there are both.
        temperature: 0 to always choose the most probable token.
        top_p: The part of the distribution to choose from.
        stop: Texts before which to stop.
        seed: Of the draws.
        n: 1.
        presence_penalty: 0.
        frequency_penalty: 0.
        logprobs: False.
        response_format: Text.
        user: Without effect.
        metadata: Without effect.
        store: False.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Literal[1] | None = 1
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    logprobs: Literal[False] | None = False
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = False

    def prompt(self) -> Prompt:
        """Return what to write."""
        return Prompt(
            messages=[message.plain() for message in self.messages],
            tokens=self.max_completion_tokens or self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stops=[self.stop] if isinstance(self.stop, str) else (self.stop or ()),
            seed=self.seed,
        )


async def respond(body: ChatBody, name: str, parts: AsyncGenerator[Part | Refused, None]) -> Response:
    """Return the response with an answer.

    Args:
        body: The request.
        name: The model's name.
        parts: The parts of the answer. An error before the first one has a status of its own; later, a stream ends
            with an error event, without a finish reason and without `[DONE]`.
    """
    first = await anext(parts, TIMED_OUT)
    if isinstance(first, Refused) or not body.stream:
        await parts.aclose()
    if isinstance(first, Refused):
        return first.response()
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
    headers = {"X-S3T-Request": str(first.request)}
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(head, first, parts, usage)
        headers["Cache-Control"] = "no-store"
        headers["X-Accel-Buffering"] = "no"  # nginx would hold the events back
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")
    message = {"role": "assistant", "content": first.text}
    choice = {"index": 0, "message": message, "finish_reason": first.finish, "logprobs": None}
    answer = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(first)}
    return JSONResponse(answer, headers=headers)


async def _events(
    head: dict[str, Any], first: Part, parts: AsyncGenerator[Part | Refused, None], include_usage: bool
) -> AsyncIterator[str]:
    def event(*choices: dict[str, Any], **more: Any) -> str:
        return _event({**head, "object": "chat.completion.chunk", "choices": choices, **more})

    def choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}

    async with aclosing(parts):
        yield event(choice({"role": "assistant", "content": ""}))
        part: Part | Refused = first
        while isinstance(part, Part):
            if part.text:
                yield event(choice({"content": part.text}))
            if part.finish is not None:
                yield event(choice({}, part.finish))
                if include_usage:
                    yield event(usage=_usage(part))
                yield "data: [DONE]\n\n"
                return
            part = await anext(parts, TIMED_OUT)
    yield _event({"error": {"code": part.code, "message": part.message, "type": "server_error", "param": None}})


def _event(contents: dict[str, Any]) -> str:
    return f"data: {json.dumps(contents)}\n\n"


def _usage(part: Part) -> dict[str, int]:
    return {
        "prompt_tokens": part.prompt_tokens,
        "completion_tokens": part.tokens,
        "total_tokens": part.prompt_tokens + part.tokens,
    }


class ChatSpec(LitSpec):
    """The interface between the HTTP server and the workers.

    Args:
        name: The model's name.
        timeout: Seconds until the first part, and between two parts.
    """

    def __init__(self, name: str, timeout: float) -> None:
        super().__init__()
        self.api_path = CHAT_PATH
        self._name = name
        self._timeout = timeout
        self.add_endpoint(CHAT_PATH, self.chat, ["POST"])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker gets: LitServe pickles it, and would fail while requests are open."""
        return {"_name": self._name, "_timeout": self._timeout, "api_path": self.api_path, "_endpoints": []}

    @property
    def stream(self) -> bool:
        """Whether workers return their answers in parts."""
        return True

    async def chat(self, body: ChatBody) -> Response:
        """Answer a chat.

        Args:
            body: The request.
        """
        if body.model is not None and body.model != self._name:
            return error_response(404, "unknown_model", "There is no model of this name. See /v1/models.")
        return await respond(body, self._name, self._parts(body))

    async def _parts(self, body: ChatBody) -> AsyncGenerator[Part | Refused, None]:
        """Yield what a worker writes."""
        key, arrived = uuid.uuid4(), asyncio.Event()
        found: deque[tuple[Any, LitAPIStatus]] = deque()
        self.response_buffer[key] = ResponseBufferItem(event=arrived, response_queue=found)
        try:
            self.request_queue.put((self.response_queue_id, key, time.monotonic(), body))
            while True:
                try:
                    await asyncio.wait_for(arrived.wait(), self._timeout)
                except asyncio.TimeoutError:
                    return
                arrived.clear()
                while found:
                    part, status = found.popleft()
                    if status != LitAPIStatus.OK:  # a dead worker, or too long in the queue
                        return
                    yield part
        finally:
            self.response_buffer.pop(key, None)


class ChatAPI(litserve.LitAPI):
    """The API of each worker of a language model's prediction server.

    Args:
        store: The store's folder.
        settings: Of the service.
        chat: Of the chat completions.
    """

    def __init__(self, store: Path, settings: ServiceSettings, chat: ChatSettings) -> None:
        super().__init__(api_path=CHAT_PATH, spec=ChatSpec(chat.name, settings.timeout))
        self._store = store
        self._settings = settings
        self._chat = chat

    def setup(self, device: str) -> None:
        """Called once in each worker: load the store.

        Args:
            device: The device.
        """
        replica = open_replica(self._store, self._settings, device)
        self._writing = Writing(replica, import_named(self._chat.tokenizer)(), self._chat.max_tokens)

    def decode_request(self, request: Any, **kwargs: Any) -> Any:
        """Called for each request: returns it unchanged.

        Args:
            request: The request.
            kwargs: Without effect.
        """
        return request

    def predict(self, x: ChatBody, **kwargs: Any) -> Iterator[Part | Refused]:
        """Called for each request.

        Args:
            x: The request.
            kwargs: Without effect.
        """
        if x.stream:
            yield from self._writing.stream(x.prompt())
        else:
            yield self._writing.whole(x.prompt())

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        """Called for each answer: returns its parts unchanged.

        Args:
            output: The parts.
            kwargs: Without effect.
        """
        return output

    async def authorize(self, request: Request) -> None:
        """Check the key in LIT_SERVER_API_KEY, sent as a bearer token (by OpenAI's clients) or as X-API-Key.

        Args:
            request: The request.
        """
        key = os.environ.get(_KEY)
        given = request.headers.get("X-API-Key") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            raise HTTPException(401, "unauthorized")


def add_models(app: FastAPI, chat: ChatSettings) -> None:
    """Add the list of models, which OpenAI's clients ask for, and describe errors without the contents of requests.

    Args:
        app: The prediction server.
        chat: Of the chat completions.
    """

    @app.get("/v1/models", summary="The model that answers")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": chat.name, "object": "model", "created": 0, "owned_by": "s3t"}]}

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        where = sorted({str(part) for one in error.errors() for part in one["loc"] if part in ChatBody.model_fields})
        message = "The model does not take this request" + (f": see {', '.join(where)}." if where else ".")
        return error_response(422, "invalid", message)

    app.add_exception_handler(RequestValidationError, of_validation)
