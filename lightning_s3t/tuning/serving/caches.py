"""Key-value caches of an ensemble: the caller holds one, and each shard has its own behind it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from lightning_s3t.errors import EnsembleError, RevokedError

# what generation does to a cache between two tokens, besides filling it
_CHANGES = ("batch_repeat_interleave", "batch_select_indices", "crop", "reorder_cache", "reset")
Keys = Mapping[int, tuple[str, ...]]


class ShardCaches:
    """Gives every shard a cache of its own (transformers' `Cache`) for each one that a caller passes.

    The first shard fills the caller's, so that its length is right; the others fill copies. What the caller does to its
    cache (beam search reorders it) is done to the copies too.

    Example:
        >>> from transformers import DynamicCache
        >>> caches, given = ShardCaches(), DynamicCache()
        >>> own = [caches.of(given, {0: ("a",), 1: ("b",)})[shard] for shard in (0, 1)]
        >>> own[0] is given, own[1] is given
        (True, False)
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, tuple[dict[int, tuple[str, ...]], dict[int, Any]]]
        self._known = weakref.WeakKeyDictionary()

    def of(self, given: Any, keys: Keys) -> dict[int, Any]:
        """Returns the shards' caches.

        Args:
            given: The caller's cache.
            keys: What each shard serves with now, in order.

        Raises:
            EnsembleError: The cache was filled by somebody else.
            RevokedError: The shards serve with something else than when the cache was begun.
        """
        if given not in self._known:
            if given.get_seq_length() > 0:
                raise EnsembleError(
                    "The network was called with a cache that it has not filled itself: each shard needs its own. "
                    "Begin with an empty one (transformers.DynamicCache()), or leave it to generate()."
                )
            _, *others = keys
            # without the caller's own: what is kept under it must not keep it alive
            copies = {shard: copy.deepcopy(given) for shard in others}
            self._known[given] = dict(keys), copies
            _repeat_changes(given, list(copies.values()))
        begun, copies = self._known[given]
        if begun != dict(keys):
            raise RevokedError(
                "The survivors have changed since this cache was begun, and it may hold what was to be forgotten. "
                "Begin the text again with an empty cache; S3TModule.generate does so by itself."
            )
        return {next(iter(begun)): given, **copies}


def _repeat_changes(given: Any, copies: list[Any]) -> None:
    for name in _CHANGES:
        own = getattr(given, name, None)
        if callable(own):
            setattr(given, name, _repeated(own, [getattr(other, name) for other in copies]))


def _repeated(own: Callable[..., Any], others: list[Callable[..., Any]]) -> Callable[..., Any]:
    def change(*args: Any, **kwargs: Any) -> Any:
        for other in others:
            other(*args, **kwargs)
        return own(*args, **kwargs)

    return change
