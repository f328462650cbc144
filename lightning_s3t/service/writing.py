"""A worker that writes texts: from the messages of a chat to the parts of an answer."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import TextStreamer

from lightning_s3t.errors import ConfigurationError, NoSurvivorError, RevokedError, StoreError
from lightning_s3t.service.replicas import Refused, refusal_of
from lightning_s3t.serving import Replica

_log = logging.getLogger("lightning_s3t.service")
_ATTEMPTS = 5  # at an answer of which nothing has left, while requests come in
_OVERTAKEN = Refused(
    503,
    "overtaken",
    "A request to forget, or a fit, has changed the model. The answer does not continue. Ask again.",
)


@dataclass(frozen=True)
class Prompt:
    """What to write, and how.

    Attributes:
        messages: The chat so far: role and content of each message.
        tokens: The largest number of tokens to write; None for as many as the service allows.
        temperature: Of the distribution that tokens are drawn from; 0 to always choose the most probable one.
        top_p: The tokens to choose from are the most probable ones whose probabilities add up to this.
        stops: Texts before which to stop.
        seed: Of the draws; None for a random one.
    """

    messages: Sequence[dict[str, str]]
    tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stops: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Part:
    """A part of an answer.

    Attributes:
        text: What was written since the part before.
        request: The number of the newest request to forget that the model had applied; -1 before the replica's check.
        finish: In the last part, why it is the last: a stop, or the largest number of tokens.
        prompt_tokens: The number of tokens in the prompt.
        tokens: The number of tokens that were written so far.
    """

    text: str
    request: int
    finish: Literal["stop", "length"] | None
    prompt_tokens: int
    tokens: int


class Writing:
    """Writes texts with a replica of a language model.

    Args:
        replica: The replica.
        tokenizer: A transformers tokenizer with a chat template.
        max_tokens: The largest number of tokens in an answer.

    Raises:
        ConfigurationError: The network is not a transformers model that generates, or the tokenizer has no template.
    """

    def __init__(self, replica: Replica, tokenizer: Any, max_tokens: int) -> None:
        served = replica.served
        self._network: Any = served.module.get_submodule(served.network_path)
        if getattr(self._network, "generation_config", None) is None:
            raise ConfigurationError(
                f"The network {type(self._network).__name__} cannot generate text. Expected a transformers language "
                "model for `chat`, such as one of AutoModelForCausalLM."
            )
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                f"The tokenizer {type(tokenizer).__name__} has no chat template. Expected one in "
                "`tokenizer.chat_template`: it says how the messages of a chat become a text."
            )
        self._replica = replica
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._context = getattr(self._network.config, "max_position_embeddings", None)

    def stream(self, prompt: Prompt) -> Iterator[Part | Refused]:
        """Yield the parts of an answer; each is checked before it is yielded.

        If a request or a fit changes the model before the first part, the answer is begun again. Later it ends with a
        refusal: what has left cannot be taken back, and must not go on.

        Args:
            prompt: What to write.
        """
        ids = self._ids(prompt)
        if isinstance(ids, Refused):
            yield ids
            return
        for _ in range(_ATTEMPTS):
            has_left = False
            try:
                for request, part in self._replica.stream_as_of(lambda served: self._write(ids, prompt)):
                    has_left = True
                    yield replace(part, request=request)
                return
            except Exception as error:
                refused = _refusal(error)
            if refused is not _OVERTAKEN or has_left:
                break
        yield refused

    def whole(self, prompt: Prompt) -> Part | Refused:
        """Return an answer as one part; it is written again if a request overtakes it.

        Args:
            prompt: What to write.
        """
        ids = self._ids(prompt)
        if isinstance(ids, Refused):
            return ids
        for _ in range(_ATTEMPTS):
            try:
                request, parts = self._replica.answer_as_of(lambda served: list(self._write(ids, prompt)))
            except Exception as error:
                refused = _refusal(error)
                if refused is not _OVERTAKEN:
                    break
            else:
                last = parts[-1]
                text = "".join(part.text for part in parts)
                return replace(last, text=text, request=request)
        return refused

    def _ids(self, prompt: Prompt) -> Tensor | Refused:
        try:
            ids = self._tokenizer.apply_chat_template(
                list(prompt.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        except Exception as error:  # of the template, or of the tokenizer, with a stranger's text
            _log.info("A prompt could not be made: %s", type(error).__name__)
            return Refused(422, "invalid", "The chat template cannot take these messages.")
        found: Tensor = ids.to(self._network.device)
        if not found.shape[1] or (self._context is not None and found.shape[1] >= self._context):
            return Refused(422, "too_long", f"The prompt has {found.shape[1]} tokens; the model reads {self._context}.")
        return found

    def _write(self, ids: Tensor, prompt: Prompt) -> Iterator[Part]:
        """Yield the parts of one text. It is written in another thread, whose texts arrive through a queue."""
        most = min(prompt.tokens or self._max_tokens, self._max_tokens)
        if self._context is not None:
            most = min(most, self._context - ids.shape[1])
        streamer = _Streamer(self._tokenizer)
        thread = threading.Thread(target=self._generate, args=(ids, prompt, most, streamer), daemon=True)
        thread.start()
        cut = _Cut(prompt.stops)
        try:
            for text in cut.apply(streamer.texts()):
                if text:
                    yield Part(text, -1, None, ids.shape[1], len(streamer.tokens))
        finally:
            streamer.stop()
            thread.join()
        is_full = len(streamer.tokens) >= most and streamer.tokens[-1] not in self._ends()
        finish: Literal["stop", "length"] = "length" if is_full and not cut.has_stopped else "stop"
        yield Part("", -1, finish, ids.shape[1], len(streamer.tokens))

    def _generate(self, ids: Tensor, prompt: Prompt, most: int, streamer: _Streamer) -> None:
        drawn = {"do_sample": True, "temperature": prompt.temperature, "top_p": prompt.top_p, "top_k": 0}
        ends = self._ends()
        pad = self._tokenizer.pad_token_id
        try:
            # without a seed too: every process begins with the same one, and an earlier prompt may have set its own
            torch.manual_seed(prompt.seed if prompt.seed is not None else secrets.randbits(63))
            with torch.inference_mode():
                self._network.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=most,
                    streamer=streamer,
                    eos_token_id=ends or None,
                    pad_token_id=pad if pad is not None else (ends[0] if ends else 0),
                    **(drawn if prompt.temperature > 0 else {"do_sample": False}),
                )
        except _StoppedError:
            streamer.finish()
        except BaseException as error:
            streamer.finish(error)
        else:
            streamer.finish()

    def _ends(self) -> list[int]:
        """Return the tokens that end a text, of the tokenizer and of the model."""
        own = self._network.generation_config.eos_token_id
        known = [*(own if isinstance(own, (list, tuple)) else [own]), self._tokenizer.eos_token_id]
        return sorted({int(token) for token in known if token is not None})


def _refusal(error: Exception) -> Refused:
    if isinstance(error, RevokedError):
        return _OVERTAKEN
    if isinstance(error, (NoSurvivorError, StoreError)):
        return refusal_of(error)
    _log.error("A text could not be written: %s", type(error).__name__)
    return Refused(500, "failed", "The model cannot answer this.")


class _StoppedError(Exception):
    """Nobody reads the text any more."""


class _Streamer(TextStreamer):
    """Passes the text on from the thread that generates it; a text is not begun twice."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tokens: list[int] = []
        self._texts: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._begun = False

    def put(self, value: Tensor) -> None:
        """Called by transformers: with the prompt, and then with each token."""
        if self._stopped.is_set():
            raise _StoppedError
        if value.dim() > 1:  # the prompt
            if self._begun:  # the model has changed, and the predictor begins the text again
                self._texts.put(RevokedError("The model has changed while a text was written."))
                raise _StoppedError
            self._begun = True
        else:
            self.tokens.extend(value.tolist())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers, with the next piece of text."""
        self._texts.put(text)

    def texts(self) -> Iterator[str]:
        """Yield the pieces of text, and raise what the thread has raised."""
        while (text := self._texts.get()) is not None:
            if isinstance(text, BaseException):
                raise text
            yield text

    def stop(self) -> None:
        """End the text at its next token."""
        self._stopped.set()

    def finish(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes."""
        self._texts.put(error)


class _Cut:
    """Ends a text before the first of some texts, of which no part is let through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self.has_stopped = False

    def apply(self, texts: Iterable[str]) -> Iterator[str]:
        held = ""
        for text in texts:
            held += text
            found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
            if found:
                self.has_stopped = True
                yield held[: min(found)]
                return
            kept = max((n for stop in self._stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
            yield held[: len(held) - kept]
            held = held[len(held) - kept :]
        yield held
