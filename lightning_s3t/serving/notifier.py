"""Notifying listeners of requests: each listener is notified of each request once, whoever made it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.store import RequestRecord, Store

Answer = TypeVar("Answer", RequestRecord, RequestRecord | Ticket)


class Notifier:
    """Carry out the requests of a process, and call `on_forget(receipt)` on the listeners.

    Corrections, restrictions and their ends call `on_rectify`, `on_restrict` and `on_release`.

    A request arrives through a served model, through a trainer's hook, or from another process. All notifiers of a
    store in a process share each listener's position, so a listener is never notified of a request twice, and never
    misses one. A listener is notified of the requests in order, one at a time, from the moment that it joined.

    Args:
        store: The opened store.

    Example:
        >>> import tempfile
        >>> class Listener:
        ...     def on_forget(self, receipt):
        ...         print("heard of request", receipt.request)
        >>> settings, listener = {"partition": {"shards": 1, "slices": 2, "seed": 0}}, Listener()
        >>> with tempfile.TemporaryDirectory() as folder, Store.create(folder, settings) as store:
        ...     _ = Notifier(store).answer([listener], lambda store: store.forget(["user-1"], strict=False))
        ...     Notifier(store).tell([listener])
        heard of request 1
        []
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heard = _heard_of(store.path.resolve())

    def join(self, listeners: Iterable[object]) -> None:
        """Notify listeners of all requests from now on; listeners that have already joined keep their position.

        Args:
            listeners: Modules, callbacks, data modules, anything.
        """
        with self._heard.lock:
            new = [listener for listener in listeners if not self._heard.knows(listener)]
            if new:
                newest = self._store.request_number
                for listener in new:
                    self._heard.put(listener, newest)

    def answer(self, listeners: Sequence[object], ask: Callable[[Store], Answer]) -> Answer:
        """Make a request, and notify the listeners; a request that waits for a fit is not reported yet.

        Args:
            listeners: The listeners to notify; new ones join.
            ask: Makes the request of the store.
        """
        self.join(listeners)
        answer = ask(self._store)
        if isinstance(answer, RequestRecord):
            self._tell(listeners, answer.request, answer)
        return answer

    def tell(self, listeners: Sequence[object]) -> list[RequestRecord]:
        """Notify the listeners of requests that are new to them.

        Args:
            listeners: The listeners to notify; new ones join, and are notified from the next request on.

        Returns:
            The receipts that one of them had not heard of.
        """
        self.join(listeners)
        return self._tell(listeners, self._store.request_number)

    def _tell(self, listeners: Sequence[object], newest: int, last: RequestRecord | None = None) -> list[RequestRecord]:
        """Tell of all requests up to the newest; `last` is its receipt, if it has been read already."""
        with self._heard.lock:
            since = min((self._heard.get(listener) for listener in listeners), default=newest)
            if since >= newest:
                return []
            receipts = [last] if last is not None and since == newest - 1 else self._store.receipts(after=since)
            for receipt in receipts:
                for listener in listeners:
                    if self._heard.get(listener) >= receipt.request:
                        continue
                    self._heard.put(listener, receipt.request)  # before the call, which may raise, or forget in turn
                    hook = getattr(listener, f"on_{receipt.kind}", None)
                    if callable(hook):
                        hook(receipt)
            return receipts


class _Heard:
    """The number of the last request that each listener of a store has heard of.

    Listeners are compared by identity: equal ones may be distinct, and some are not hashable.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: a listener may make a request itself
        self._last: dict[int, tuple[weakref.ref[object], int]] = {}

    def knows(self, listener: object) -> bool:
        return id(listener) in self._last

    def get(self, listener: object) -> int:
        return self._last[id(listener)][1]

    def put(self, listener: object, request: int) -> None:
        key = id(listener)
        self._last[key] = (weakref.ref(listener, lambda _: self._last.pop(key, None)), request)


_ALL: weakref.WeakValueDictionary[Path, _Heard] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _heard_of(store: Path) -> _Heard:
    with _LOCK:
        found = _ALL.get(store)
        if found is None:
            found = _ALL[store] = _Heard()
        return found


def listeners_of(trainer: Any) -> list[object]:
    """Return who may have an `on_forget` or one of its siblings: a trainer's module, data module and callbacks.

    Args:
        trainer: The trainer, or None.
    """
    parts = [getattr(trainer, name, None) for name in ("lightning_module", "datamodule")]
    return [part for part in (*parts, *(getattr(trainer, "callbacks", None) or ())) if part is not None]
