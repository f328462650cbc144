"""Turns: one thread at a time answers with the one backbone that the shards share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Turn:
    """Whose turn it is to answer; an object of its own, so that copies of a hook share it.

    Attributes:
        lock: Held by whoever answers, or changes what answers.

    Example:
        >>> turn = Turn()
        >>> with turn.taken():
        ...     turn.mine
        True
        >>> turn.mine
        False
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._owner: int | None = None
        self._taken = False

    @property
    def mine(self) -> bool:
        """Whether this thread is answering."""
        if torch.compiler.is_compiling():  # a compiled graph cannot ask which thread it is
            return self._taken
        return self._owner == threading.get_ident()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Answers while the block runs; other threads wait."""
        with self.lock:
            self._owner, self._taken = threading.get_ident(), True
            try:
                yield
            finally:
                self._owner, self._taken = None, False
