"""The deletion hook: adds `forget` to a trainer, and keeps a served model up to date with the store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.serving.notifier import Notifier, listeners_of
from lightning_s3t.store import RequestRecord, Store


class DeletionHook(pl.Callback):
    """Add `forget` to any trainer, and keep a served model up to date with the store.

    Before each batch of a test, a validation or a prediction it looks for new requests, from this or another process,
    and calls `on_forget(receipt)` on the module, the data module and the callbacks that define it; a served model swaps
    to its survivors first. Each of them is notified of each request once, even if several sources report it.
    Corrections, restrictions and their ends call `on_rectify`, `on_restrict` and `on_release`.

    Args:
        store: The store's folder.

    Example:
        >>> hook = DeletionHook("runs/s3t")
        >>> trainer = pl.Trainer(callbacks=[hook], logger=False)
    """

    def __init__(self, store: str | Path) -> None:
        self.store = Path(store)
        self._trainer: pl.Trainer | None = None
        self._opened: Notifier | None = None

    def forget(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Remove subjects from the model: revoke and erase every unit that their data reached.

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.forget`).

        Returns:
            The revoked and erased units, and the serving ones; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            StoreError: The store does not exist.
        """
        return self._notifier.answer(self._listeners(), lambda store: store.forget(subjects, strict, request_id))

    def rectify(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Remove everything that the subjects' old data reached; the next fit trains on the corrected data.

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request (`Store.rectify`).

        Returns:
            The revoked and erased units, and the serving ones; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            StoreError: The store does not exist.
        """
        return self._notifier.answer(self._listeners(), lambda store: store.rectify(subjects, strict, request_id))

    def restrict(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Set aside the units that the subjects' data reached, until the subjects are released or forgotten.

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request (`Store.restrict`).

        Raises:
            UnsupportedError: The method trains one model on everyone's data.
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            StoreError: The store does not exist.
        """
        return self._notifier.answer(self._listeners(), lambda store: store.restrict(subjects, strict, request_id))

    def release(self, subjects: Iterable[Any], request_id: str | None = None) -> RequestRecord:
        """End the restriction of subjects: units that were set aside only for them serve again.

        Args:
            subjects: Their ids.
            request_id: The caller's name for the request (`Store.release`).

        Raises:
            UnknownSubjectError: A subject is not restricted. Nothing was changed.
            StoreError: The store does not exist.
        """
        return self._notifier.answer(self._listeners(), lambda store: store.release(subjects, request_id))

    def poll(self) -> list[RequestRecord]:
        """Look for requests since the last look, and notify the listeners.

        Returns:
            Their receipts.
        """
        return self._notifier.tell(self._listeners())

    def attach(self, trainer: pl.Trainer) -> None:
        """Set the trainer whose module, data module and callbacks are notified of requests.

        Args:
            trainer: The trainer.
        """
        self._trainer = trainer

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run begins: earlier requests are not reported."""
        self.attach(trainer)
        if stage != "fit":
            self._notifier.join(self._listeners())

    def on_test_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Called before a test batch: looks for requests."""
        self.poll()

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Called before a validation batch: looks for requests, unless a fit is running."""
        if trainer.state.fn != "fit":
            self.poll()

    def on_predict_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Called before a prediction batch: looks for requests."""
        self.poll()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}  # a database is opened by each process for itself

    @property
    def _notifier(self) -> Notifier:
        # its own connection: requests come before, during and after a fit, but a fit's store is open only during the
        # fit
        if self._opened is None:
            self._opened = Notifier(Store.open(self.store))
        return self._opened

    def _listeners(self) -> list[object]:
        return [*listeners_of(self._trainer), self]  # itself, so that `poll` returns the requests since the last one
