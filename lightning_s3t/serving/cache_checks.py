"""Caches are checked at their first use: continuing with them must give the same output as reading the whole text."""

from __future__ import annotations

import contextvars
import copy
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.errors import EnsembleError, RevokedError
from lightning_s3t.serving.batched import allclose_nested
from lightning_s3t.serving.caches import ShardCaches, is_cache
from lightning_s3t.tuning.nested import replace_leaves, replace_tensors, tensors_in

_TOKENS = 4
# arguments of generate for its length and its streamers, which a trial sets itself
_LIMITS = ("max_length", "max_new_tokens", "max_time", "min_length", "min_new_tokens", "stop_strings")
_LISTENERS = ("stopping_criteria", "streamer")
# arguments that let a cheaper model, or the text itself, guess tokens ahead
_ASSISTANCE = (
    "assistant_early_exit",
    "assistant_model",
    "assistant_tokenizer",
    "max_matching_ngram_size",
    "prompt_lookup_num_tokens",
)
_WITHOUT = "Call it with use_cache=False and the whole text, or use generate(), which then turns caches off by itself."


class CheckedGeneration:
    """Generates with an ensemble's caches, once they have proved right for the form of the call.

    At the first call of each form, the same few tokens are generated with the caches and without, and the ensemble's
    outputs at each token are compared. If they differ, or the run with caches fails, this form is generated without
    caches from then on, with a warning.

    Args:
        network: A transformers model that can generate.
        half: Returns whether the network computes in half precision.

    Raises:
        EnsembleError: A form of generation that needs caches (assisted generation), where they are not right.
    """

    def __init__(self, network: Any, half: Callable[[], bool]) -> None:
        self._network = network
        self._own: Callable[..., Any] = network.generate
        self._half = half
        self._usable: dict[str, bool] = {}
        self._running: contextvars.ContextVar[bool] = contextvars.ContextVar("running", default=False)

    @property
    def running(self) -> bool:
        """Whether this thread is generating, with caches that have been checked or are being checked."""
        return self._running.get()

    def __call__(self, shards: int, *args: Any, **kwargs: Any) -> Any:
        """Generates.

        Args:
            shards: Number of shards that answer.
            args: For the network's `generate`.
            kwargs: Likewise.
        """
        arguments = self._by_name(args, kwargs)
        if "disable_compile" not in arguments and hasattr(self._network.generation_config, "disable_compile"):
            # an ensemble's forward swaps modules, and cannot be compiled
            arguments = _settings_in(arguments, disable_compile=True)
        token = self._running.set(True)
        try:
            if arguments.get("use_cache") is not False and not self._can_use_caches(shards, arguments):
                arguments = {name: value for name, value in arguments.items() if not is_cache(value)}
                arguments = _settings_in(arguments, use_cache=False)
            return self._own(**arguments)
        finally:
            self._running.reset(token)

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = inspect.signature(self._own).bind_partial(*args, **kwargs).arguments
        return {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}

    def _can_use_caches(self, shards: int, arguments: dict[str, Any]) -> bool:
        tokens = self._count_tokens(arguments)
        if tokens < 2:
            return True  # nothing is read on
        form = self._form_of(shards, arguments)
        if form not in self._usable:
            self._usable[form] = self._try(arguments, tokens)
        return self._usable[form]

    def _count_tokens(self, arguments: Mapping[str, Any]) -> int:
        """Return how many tokens a trial may generate, at most."""
        config = arguments.get("generation_config") or self._network.generation_config
        limits = {name: arguments.get(name, getattr(config, name, None)) for name in ("max_new_tokens", "max_length")}
        if limits["max_new_tokens"] is not None:
            return min(_TOKENS, int(limits["max_new_tokens"]))
        texts = [tensor for _, tensor in tensors_in(arguments) if tensor.dim() > 1]
        if limits["max_length"] is None or not texts:
            return _TOKENS
        return min(_TOKENS, int(limits["max_length"]) - texts[0].shape[1])

    def _form_of(self, shards: int, arguments: Mapping[str, Any]) -> str:
        """Describe the form of a call: what decides how it generates, without its contents."""
        config = arguments.get("generation_config") or self._network.generation_config
        counted = {name: value for name, value in arguments.items() if name not in (*_LIMITS, *_LISTENERS)}
        described = replace_tensors(counted, lambda _, tensor: (str(tensor.dtype), tensor.dim()))
        plain = replace_leaves(
            described, lambda _, x: x if x is None or isinstance(x, (bool, int, str)) else type(x).__name__
        )
        text = repr((shards, sorted(plain.items()), sorted(config.to_dict().items(), key=lambda item: item[0])))
        return hashlib.sha256(text.encode()).hexdigest()

    def _try(self, arguments: dict[str, Any], tokens: int) -> bool:
        """Return whether a few tokens come with the same answers with and without caches."""
        config = arguments.get("generation_config") or self._network.generation_config
        assisted = any(arguments.get(name) or getattr(config, name, None) for name in _ASSISTANCE)
        choices = _SameChoices()
        expected: list[Tensor] = []
        found: list[Tensor] = []
        failure: Exception | None = None
        try:
            found = self._run(arguments, tokens, choices, use_cache=True)
        except RevokedError:
            raise
        except Exception as error:
            failure = error
        # an error that also occurs without caches is the caller's mistake, and is raised unchanged
        if assisted:  # several tokens are chosen at a time, so a second run could not repeat the same choices
            expected = self._run(arguments, tokens, _SameChoices(), use_cache=False, left_out=_ASSISTANCE)
        else:
            choices.repeat()
            expected = self._run(arguments, tokens, choices, use_cache=False)
        both = min(len(found), len(expected))  # guesses that are right may reach further
        if both > 1 and allclose_nested(found[:both], expected[:both], self._half()):
            return True
        problem = "the outputs with them differ from those of reading the whole text each time"
        if failure is not None:
            problem = f"with them, it fails ({type(failure).__name__}: {failure})"
        if assisted:
            raise EnsembleError(
                f"Assisted generation needs key-value caches, but {type(self._network).__name__}'s cannot be used: "
                f"{problem}. Generate without assistance. Sampled texts cannot be compared, so assistance needs "
                "do_sample=False."
            )
        warnings.warn(
            f"{type(self._network).__name__} generates without key-value caches, which is slower: {problem}. An "
            "ensemble cannot give each shard the caches of this network, or of this release of transformers.",
            stacklevel=2,
        )
        return False

    def _run(
        self,
        arguments: dict[str, Any],
        tokens: int,
        choices: _SameChoices,
        use_cache: bool,
        left_out: tuple[str, ...] = (),
    ) -> list[Tensor]:
        """Generate a few tokens, and return the logits that each was chosen by."""
        left_out = (*_LIMITS, *_LISTENERS, *left_out)
        given = {name: value for name, value in arguments.items() if name not in left_out and not is_cache(value)}
        config = copy.deepcopy(given.get("generation_config") or self._network.generation_config)
        for name in left_out:
            if hasattr(config, name):
                setattr(config, name, None)
        processors = [*copy.deepcopy(list(given.get("logits_processor") or [])), choices]
        settings = {name: given.pop(name) for name in list(given) if name in vars(config)}
        settings |= {"use_cache": use_cache, "max_new_tokens": tokens, "min_new_tokens": tokens}
        settings |= {"return_dict_in_generate": True, "output_logits": True}
        given = _settings_in({**given, "generation_config": config, "logits_processor": processors}, **settings)
        devices = {p.device for p in self._network.parameters() if p.is_cuda}
        with torch.random.fork_rng(devices):
            return list(self._own(**given).logits)


def _settings_in(arguments: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Return arguments with further settings: in their config if they have one, as transformers asks."""
    config = arguments.get("generation_config")
    if config is None:
        return {**arguments, **settings}
    config = copy.deepcopy(config)
    for name, value in settings.items():
        setattr(config, name, value)
    return {**arguments, "generation_config": config}


class _SameChoices:
    """A logits processor that makes a second run choose the tokens of the first."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        self._repeated: Iterator[Tensor] | None = None

    def repeat(self) -> None:
        """Begin the second run."""
        self._repeated = iter(self._seen)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._repeated is not None:
            return next(self._repeated, scores)
        self._seen.append(scores.clone())
        return scores


class CheckedReading:
    """Checks calls that read on with a cache outside of `generate`, as loops that people write by hand do.

    The first time that such a call continues a text in its form, the whole text is read as well, without a cache.

    Args:
        half: Returns whether the network computes in half precision.
    """

    def __init__(self, half: Callable[[], bool]) -> None:
        self._half = half
        self._checked: set[str] = set()

    def note(self, cache: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the text of a call that started a cache.

        Args:
            cache: The caller's.
            args: The arguments of the network's call.
            kwargs: Likewise.
        """
        behind = ShardCaches.of(cache)
        if behind is not None:
            behind.read = [dict(tensors_in((args, kwargs)))]

    def check(
        self,
        form: str,
        cache: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        answer: Any,
        ask: Callable[..., Any],
    ) -> None:
        """Compare the output of a call that continued a text with that of reading the whole text.

        Args:
            form: The form of the call.
            cache: The caller's.
            args: The arguments of the network's call.
            kwargs: Likewise.
            answer: The ensemble's output.
            ask: Asks the ensemble, with arguments for the network.

        Raises:
            EnsembleError: The answers differ, or cannot be compared.
        """
        behind = ShardCaches.of(cache)
        read = behind.read if behind else []
        if form not in self._checked:
            whole_args, whole_kwargs = _whole_text(read, args, kwargs)
            found = _logits_of(answer)
            expected = _logits_of(ask(*whole_args, **whole_kwargs))[:, -found.shape[1] :]
            if not allclose_nested(found, expected, self._half()):
                raise EnsembleError(
                    "With its key-value caches, the network's output differs from that for the whole text. An "
                    f"ensemble cannot give each shard the caches ({type(cache).__name__}) of this network, or of this "
                    f"release of transformers. {_WITHOUT}"
                )
            self._checked.add(form)
        if read:
            read.append(dict(tensors_in((args, kwargs))))


def _whole_text(
    read: list[dict[Any, Tensor]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of one call that reads the text of several successive calls."""
    now = dict(tensors_in((args, kwargs)))
    main = next((path for path, tensor in now.items() if tensor.dim() > 1), None)
    if main is None or not read or any(main not in earlier for earlier in read):
        raise EnsembleError(
            f"The text that was read with this cache is unknown, so the cache cannot be checked. {_WITHOUT}"
        )
    new = now[main].shape[1]
    total = sum(earlier[main].shape[1] for earlier in read) + new

    def whole(path: Any, leaf: Any) -> Any:
        if is_cache(leaf):
            return None
        if not isinstance(leaf, Tensor):
            return False if path[-1] == "use_cache" else leaf
        axis = min(leaf.dim() - 1, 1)
        if leaf.dim() and leaf.shape[axis] == new and all(path in earlier for earlier in read):
            return torch.cat([*(earlier[path] for earlier in read), leaf], dim=axis)
        if leaf.dim() and leaf.shape[-1] == total:  # a mask over all that has been read
            return leaf
        raise EnsembleError(
            f"The argument {path[-1]!r} of shape {tuple(leaf.shape)} fits neither the {new} new tokens nor the {total} "
            f"of the whole text, so a call with a cache cannot be checked. {_WITHOUT}"
        )

    whole_args, whole_kwargs = replace_leaves((args, kwargs), whole)
    return whole_args, whole_kwargs


def _logits_of(answer: Any) -> Tensor:
    found = getattr(answer, "logits", answer)
    if not isinstance(found, Tensor) or found.dim() < 2:
        raise EnsembleError(
            f"The network returned {type(answer).__name__}, which does not have logits for each token, so its caches "
            f"cannot be checked. {_WITHOUT}"
        )
    return found
