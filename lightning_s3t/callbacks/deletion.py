"""The deletion hook: gives a trainer `forget`, and keeps a served model in step with the store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.serving.notifier import Notifier, listeners_of
from lightning_s3t.store import RequestRecord, Store


class DeletionHook(pl.Callback):
    """Gives any trainer a `forget`, and keeps a served model in step with the store.

    Before each batch of a test, a validation or a prediction it looks for requests that have come in, from this or
    another process, and calls `on_forget(receipt)` on the module, the data module and the callbacks that have it; a
    served model swaps to its survivors first. Each of them hears of each request once, whatever else tells of requests.
    Of corrections, restrictions and their ends they hear by `on_rectify`, `on_restrict` and `on_release`.

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
        """Remove subjects from the model: revoke every unit that they reached, and erase it.

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
            request_id: A name of the caller's for the request, so that a retry does not count twice (`Store.forget`).

        Returns:
            What was revoked and erased, and what serves now; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: There is no store.
        """
        return self._notifier.forget(subjects, strict, self._listeners(), request_id)

    def rectify(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Take out what the old data of subjects has reached; the next fit trains on the corrected data.

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
            request_id: A name of the caller's for the request (`Store.rectify`).

        Returns:
            What was revoked and erased, and what serves now; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: There is no store.
        """
        return self._notifier.rectify(subjects, strict, self._listeners(), request_id)

    def restrict(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Set aside what the data of subjects has reached, until they are released or forgotten.

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.
            request_id: A name of the caller's for the request (`Store.restrict`).

        Raises:
            UnsupportedError: The method has one model, which the data of everybody has reached.
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: There is no store.
        """
        return self._notifier.restrict(subjects, strict, self._listeners(), request_id)

    def release(self, subjects: Iterable[Any], request_id: str | None = None) -> RequestRecord:
        """End the restriction of subjects: what was set aside for them alone serves again.

        Args:
            subjects: Their ids.
            request_id: A name of the caller's for the request (`Store.release`).

        Raises:
            UnknownSubjectError: A subject is not restricted; nothing has changed then.
            StoreError: There is no store.
        """
        return self._notifier.release(subjects, self._listeners(), request_id)

    def poll(self) -> list[RequestRecord]:
        """Look for requests that came in since the last look, and tell the listeners.

        Returns:
            Their receipts.
        """
        return self._notifier.tell(self._listeners())

    def attach(self, trainer: pl.Trainer) -> None:
        """Take a trainer whose module, data module and callbacks are told of requests.

        Args:
            trainer: The trainer.
        """
        self._trainer = trainer

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run begins: what was asked before is not news.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            stage: "fit", "validate", "test" or "predict".
        """
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
        # a connection of its own: requests come before a fit, in it and after it, and a fit's store is open in the fit
        # alone
        if self._opened is None:
            self._opened = Notifier(Store.open(self.store))
        return self._opened

    def _listeners(self) -> list[object]:
        return [*listeners_of(self._trainer), self]  # itself, so that `poll` returns what has come in since the last
