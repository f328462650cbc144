"""Replica: a served model that never answers from a revoked unit, and knows when it must not answer at all."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from lightning_s3t.core.clock import own_clock
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.errors import ConfigurationError, LedgerUnreachableError, RevokedError, S3TError
from lightning_s3t.serving.predictor import EnsemblePredictor
from lightning_s3t.store import RequestRecord

_Answer = TypeVar("_Answer")
_LOOKS = 4  # in the time that a replica may answer without one


class Replica:
    """A served model, one of several, that looks for requests as often as it has to.

    With `max_staleness=0` it looks at the ledger before it computes an answer and again before the answer leaves. If a
    request has revoked units that an answer used, it computes the answer again. While the ledger is out of reach it
    refuses.

    With more, a thread looks, and the replica may answer for that long after it began its last look that succeeded. So
    an answer costs no round trip, and a brief outage of the ledger goes unnoticed. **`forget` then waits**, in every
    process and through every interface, until each replica knows of the request or its lease has expired: with four
    looks in that time, usually a quarter of it, and all of it once for a replica that has crashed.

    The guarantee: no answer whose request started after `forget` has returned, and none whose last check came after
    that, comes from units that it revoked. An answer that was checked before may still be on its way to the client.

    Args:
        served: The served model. `close` closes it.
        max_staleness: For how many seconds after a look the replica may answer: 0, or up to 60.
        renew_every: Seconds after which to load units that a fit has added; None for never.

    Raises:
        ConfigurationError: A time is not one that a replica may have.
        LedgerUnreachableError: The ledger cannot be reached: a replica does not start without a look.

    Example:
        >>> Replica.from_store("runs/none", nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.StoreError: ...
    """

    def __init__(
        self, served: EnsemblePredictor, max_staleness: float = 0.0, *, renew_every: float | None = 10.0
    ) -> None:
        if renew_every is not None and not renew_every > 0:
            raise ConfigurationError(f"Expected argument `renew_every` to be a positive number but got {renew_every}.")
        self.served = served
        self.max_staleness = max_staleness
        self._lease = served.store.lease(max_staleness) if max_staleness != 0 else None
        self._renew_every = renew_every
        self._closing = threading.Event()
        if self._lease is not None:
            self._lease.look()
            served.look_with(self._newest_request)
        self._thread: threading.Thread | None = None
        if self._lease is not None or renew_every is not None:
            self._thread = threading.Thread(target=self._keep_up, name="s3t-replica", daemon=True)
            self._thread.start()

    @classmethod
    def from_store(
        cls,
        store: str | Path,
        module: nn.Module,
        max_staleness: float = 0.0,
        *,
        renew_every: float | None = 10.0,
        **arguments: Any,
    ) -> Replica:
        """Open a store for serving.

        Args:
            store: The store's folder.
            module: The module, with the pretrained weights that `fit` was given it with. It is copied.
            max_staleness: See `Replica`.
            renew_every: See `Replica`.
            arguments: For `EnsemblePredictor.from_store`.

        Raises:
            StoreError: The store is missing or damaged.
            StoreMismatchError: The module is not the one that the store was trained with.
        """
        served = EnsemblePredictor.from_store(store, module, **arguments)
        try:
            return cls(served, max_staleness, renew_every=renew_every)
        except BaseException:
            served.close()
            raise

    @property
    def request_number(self) -> int:
        """The number of the newest request that the served model has applied."""
        return self.served.as_of

    def check_ready(self) -> None:
        """Check that the replica may answer.

        Raises:
            LedgerUnreachableError: The ledger is out of reach, for longer than the replica may answer without it.
            NoSurvivorError: Nothing is left that may answer.
            S3TError: The store is damaged, or closed.
        """
        self.served.keys_in_use()

    @property
    def is_ready(self) -> bool:
        """Whether the replica may answer, for a readiness probe. False is not a reason to restart."""
        try:
            self.check_ready()
        except S3TError:
            return False
        return True

    def answer(self, compute: Callable[[EnsemblePredictor], _Answer]) -> _Answer:
        """Return the result of a function of the served model; compute it again if used units may no longer serve.

        Args:
            compute: Called with the served model, perhaps several times.

        Raises:
            LedgerUnreachableError: The ledger is out of reach, for longer than the replica may answer without it.
            NoSurvivorError: Nothing is left that may answer.
        """
        return self.answer_as_of(compute)[1]

    def answer_as_of(self, compute: Callable[[EnsemblePredictor], _Answer]) -> tuple[int, _Answer]:
        """Answer like `answer`, and return the number of the newest request that the answer respects with it.

        Args:
            compute: Called with the served model, perhaps several times.

        Raises:
            LedgerUnreachableError: The ledger is out of reach, for longer than the replica may answer without it.
            NoSurvivorError: Nothing is left that may answer.
        """
        while True:
            before, keys = self.served.look()
            try:
                found = compute(self.served)
            except RevokedError:
                if self.served.as_of == before:  # for another reason than a request
                    raise
                continue
            as_of, in_use = self.served.look()
            if in_use == keys:  # otherwise, drop the answer
                return as_of, found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as the module does.

        Args:
            args: For the module's `forward`.
            kwargs: Likewise.
        """
        return self.answer(lambda served: served(*args, **kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the module does (`EnsemblePredictor.generate`).

        Args:
            args: For the module's `generate`.
            kwargs: Likewise.
        """
        return self.answer(lambda served: served.generate(*args, **kwargs))

    def stream(self, parts: Callable[[EnsemblePredictor], Iterable[_Answer]]) -> Iterator[_Answer]:
        """Yield parts of an answer one by one; stop if other units serve than when it started.

        Args:
            parts: Called once with the served model.

        Raises:
            RevokedError: A request or a fit has come, so the answer must not continue. Parts that were yielded cannot
                be taken back: start again.
        """
        for _, part in self.stream_as_of(parts):
            yield part

    def stream_as_of(self, parts: Callable[[EnsemblePredictor], Iterable[_Answer]]) -> Iterator[tuple[int, _Answer]]:
        """Yield like `stream`, each part with the number of the newest request that it respects.

        Args:
            parts: Called once with the served model.

        Raises:
            RevokedError: As for `stream`.
        """
        keys = self.served.keys_in_use()
        begun = parts(self.served)
        try:
            for part in begun:
                as_of, in_use = self.served.look()
                if in_use != keys:
                    raise RevokedError(
                        "A request has revoked a unit that this answer started with, or a fit has added some, so the "
                        "answer does not continue. Ask again."
                    )
                yield as_of, part
        finally:
            if isinstance(begun, Generator):
                begun.close()

    def forget(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Remove subjects from the model; return when no replica can answer from units that they reached.

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
            request_id: A name of the caller's for the request (`Store.forget`).
        """
        return self.served.forget(subjects, strict, request_id)

    def close(self) -> None:
        """Stop answering, let requests no longer wait for this replica, and close the store."""
        self._closing.set()
        if self._lease is not None:
            self._lease.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()  # it works on the store, which is closed now
        self.served.close()

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _newest_request(self) -> int:
        assert self._lease is not None
        # the serving units may have been loaded after the last look
        return max(self._lease.newest_request(), self.served.as_of)

    def _keep_up(self) -> None:
        """Look for requests, and load units that fits have added, until the replica is closed."""
        pause = self._renew_every or 60.0
        if self._lease is not None:
            pause = min(pause, self.max_staleness / _LOOKS)
        renewed = own_clock()
        while not self._closing.wait(pause):
            try:
                if self._lease is not None:
                    self._lease.look()
                if self._renew_every is not None and own_clock() - renewed >= self._renew_every:
                    renewed = own_clock()
                    self.served.refresh()
            except LedgerUnreachableError:
                continue  # the caller gets the error
            except S3TError as error:
                if not self._closing.is_set():
                    warnings.warn(f"The replica failed to check for requests: {error}", stacklevel=2)
