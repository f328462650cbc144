"""Caches of past tokens: the caller holds one object, and each shard has its own behind it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_s3t.errors import EnsembleError, RevokedError
from lightning_s3t.tuning.nested import leaves_in, replace_leaves

Keys = Mapping[int, tuple[str, ...]]
_LINK = "_lightning_s3t_shards"


def is_cache(value: Any) -> bool:
    """Return whether a value is a cache of a text that a network has read, like transformers' `Cache` classes.

    Caches are recognised by their public method `get_seq_length`, not by class or argument name: both have changed
    between releases of transformers.

    Args:
        value: Anything.

    Example:
        >>> from transformers import DynamicCache
        >>> is_cache(DynamicCache()), is_cache({})
        (True, False)
    """
    return callable(getattr(type(value), "get_seq_length", None)) and not isinstance(value, nn.Module)


def caches_in(value: Any) -> list[Any]:
    """Return the caches in a network's arguments or output, each once.

    Args:
        value: Anything.
    """
    return list({id(leaf): leaf for _, leaf in leaves_in(value) if is_cache(leaf)}.values())


@dataclass
class ShardCaches:
    """The shards' caches behind one that the caller holds.

    The first shard fills the caller's cache, so that its length is right; the others fill their own. Whatever method
    the caller calls on its cache (beam search reorders it, assisted generation crops it) is called on the others too. A
    deep copy of the caller's cache comes with deep copies of the others.

    Args:
        keys: The key of each shard's snapshots when the cache was started, in order.
        others: The caches of all shards but the first.

    Attributes:
        busy: Whether the caches are being filled or changed by us: methods that are called then are not repeated.
        read: The text that the network has read with this cache, call by call; empty if unknown.
    """

    keys: dict[int, tuple[str, ...]]
    others: dict[int, Any]
    busy: bool = False
    read: list[dict[Any, Tensor]] = field(default_factory=list)
    _owner: int = 0
    _stamp: list[Any] = field(default_factory=list)

    @staticmethod
    def of(cache: Any) -> ShardCaches | None:
        """Return the shards' caches behind a cache, or None if the ensemble did not start it.

        Args:
            cache: The caller's.
        """
        found: ShardCaches | None = vars(cache).get(_LINK)
        return found

    @classmethod
    def begin(cls, cache: Any, keys: Keys, others: Mapping[int, Any]) -> ShardCaches:
        """Put the shards' caches behind the caller's.

        Args:
            cache: The caller's, which is the first shard's.
            keys: The key of each shard's snapshots.
            others: The caches of all shards but the first.
        """
        made = cls(dict(keys), dict(others))
        kind: Any = type(cache)
        cache.__class__ = _repeating(kind)
        setattr(cache, _LINK, made)
        made.settle(cache)
        return made

    def settle(self, cache: Any) -> None:
        """Note how the caches stand, now that we have changed them.

        Args:
            cache: The caller's.

        Raises:
            EnsembleError: The shards' caches no longer have the same form.
        """
        form = [entry[:3] for entry in _stamp(cache)]
        for shard, other in self.others.items():
            if [entry[:3] for entry in _stamp(other)] != form:
                raise EnsembleError(
                    f"The cache of shard {shard} no longer has the form of the one that the caller holds "
                    f"({type(cache).__name__}), so it may be at another position in the text. Call the network with "
                    "use_cache=False."
                )
        self._owner, self._stamp = id(cache), _stamp(cache)

    def check_untouched(self, cache: Any) -> None:
        """Refuse a cache that was changed since `settle`, other than by its own methods.

        Args:
            cache: The caller's.

        Raises:
            EnsembleError: It was.
        """
        if self._owner != id(cache):  # a deep copy, whose tensors are elsewhere
            self.settle(cache)
        elif _stamp(cache) != self._stamp:
            raise EnsembleError(
                f"The tensors of the cache ({type(cache).__name__}) were changed directly, and the other shards' "
                "caches could not follow. Change a cache only through its methods, or call the network with "
                "use_cache=False."
            )


def caches_of_shards(cache: Any, keys: Keys) -> dict[int, Any]:
    """Return each shard's cache behind the one that a caller passes.

    Args:
        cache: The caller's.
        keys: The current key of each shard's snapshots, in order.

    Raises:
        EnsembleError: Something else filled the cache, or it was changed without its methods.
        RevokedError: The shards' snapshots have changed since the cache was started.
    """
    behind = ShardCaches.of(cache)
    if behind is None or (behind.keys != dict(keys) and cache.get_seq_length() == 0):
        if cache.get_seq_length() > 0:
            raise EnsembleError(
                "The network was called with a cache that it did not fill itself: each shard needs its own. Start "
                "with an empty one (transformers.DynamicCache()), or use generate()."
            )
        vars(cache).pop(_LINK, None)
        behind = ShardCaches.begin(cache, keys, {shard: copy.deepcopy(cache) for shard in list(keys)[1:]})
    if behind.keys != dict(keys):
        raise RevokedError(
            "The survivors have changed since this cache was started, and it may hold forgotten data. Start the text "
            "again with an empty cache; generate() does so by itself."
        )
    behind.check_untouched(cache)
    return {next(iter(behind.keys)): cache, **behind.others}


@contextmanager
def filling(caches: Sequence[Any]) -> Iterator[None]:
    """Let passes of the shards fill caches while the block runs, each its own.

    Args:
        caches: The caller's caches; `caches_of_shards` was called for them.

    Raises:
        EnsembleError: The shards' caches have come to differ in form.
    """
    behind = {id(cache): found for cache in caches if (found := ShardCaches.of(cache)) is not None}
    for found in behind.values():
        found.busy = True
    try:
        yield
    finally:
        for found in behind.values():
            found.busy = False
    for cache in caches:
        behind[id(cache)].settle(cache)


def hand_over(outputs: Sequence[Any], keys: Keys, given: Mapping[int, Any]) -> tuple[list[Any], list[Any]]:
    """Replace each shard's cache in the outputs with the caller's; start one if the caller passed none.

    Args:
        outputs: The shards' outputs.
        keys: The key of each shard's snapshots, in the same order.
        given: The caller's cache by the `id` of each shard's own.

    Returns:
        The outputs, and the callers' caches in them.

    Raises:
        EnsembleError: The shards' outputs do not have their caches in the same places.
    """
    if all(isinstance(output, Tensor) for output in outputs):
        return list(outputs), []
    places: list[dict[Any, Any]] = [{} for _ in outputs]
    for (shard, *path), leaf in leaves_in(list(outputs)):
        if is_cache(leaf):
            places[int(shard)][tuple(path)] = leaf
    if not any(places):
        return list(outputs), []
    if any(found.keys() != places[0].keys() for found in places):
        raise EnsembleError(
            "Some shards' outputs contain a cache and others don't. Call the network with use_cache=False."
        )
    callers: dict[Any, Any] = {}
    for path, first in places[0].items():
        if id(first) in given:
            callers[path] = given[id(first)]
        else:
            if ShardCaches.of(first) is None:
                ShardCaches.begin(first, keys, {shard: places[i][path] for i, shard in enumerate(keys) if i})
            callers[path] = first
    replaced = [replace_leaves(output, lambda path, leaf: callers.get(path, leaf)) for output in outputs]
    return replaced, list({id(cache): cache for cache in callers.values()}.values())


@functools.cache
def _repeating(kind: type) -> type:
    """Create a subclass of a cache class whose methods also act on the other shards' caches."""
    if hasattr(kind, "_repeats_for_shards"):
        return kind
    names = (name for name in dir(kind) if not name.startswith(("_", "get_", "is_", "has_")))
    methods = {name: inspect.getattr_static(kind, name) for name in names}
    body = {name: _repeated(name, own) for name, own in methods.items() if inspect.isfunction(own)}
    # its name stays, for messages and for those who ask for it
    described = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "_repeats_for_shards": True}
    return type(kind)(kind.__name__, (kind,), {**body, **described})


def _repeated(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        behind = ShardCaches.of(self)
        if behind is None or behind.busy:
            return own(self, *args, **kwargs)
        behind.busy = True
        try:
            for other in behind.others.values():
                getattr(other, name)(*args, **kwargs)
            found = own(self, *args, **kwargs)
        finally:
            behind.busy = False
        behind.read.clear()  # the rows may have changed
        behind.settle(self)
        return found

    return call


def _stamp(cache: Any) -> list[Any]:
    """Describe the tensors in a cache: their memory, their form, and their version counter."""
    return [
        (path, tuple(tensor.shape), tensor.dtype, tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
        for path, tensor in _tensors_of(cache, (), set())
    ]


def _tensors_of(value: Any, path: tuple[Any, ...], seen: set[int]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (nn.Module, type, ShardCaches)) or callable(value) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        if isinstance(value, Mapping):
            parts = list(value.items())
        elif isinstance(value, (list, tuple)):
            parts = list(enumerate(value))
        else:
            parts = list(getattr(value, "__dict__", {}).items())
        for name, part in parts:
            yield from _tensors_of(part, (*path, name), seen)
