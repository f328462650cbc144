"""The deletion hook: carries requests out, and tells whoever wants to know."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.store import Receipt, Store


def notify(receipt: Receipt, listeners: Iterable[object]) -> None:
    """Calls `on_forget(receipt)` on every listener that has one.

    Args:
        receipt: What was carried out.
        listeners: Modules, callbacks, data modules, anything; None is passed over, and each is called once.

    Example:
        >>> class Listener:
        ...     def on_forget(self, receipt):
        ...         print("heard of request", receipt)
        >>> notify("1", [Listener(), object(), None])
        heard of request 1
    """
    seen: set[int] = set()
    for listener in listeners:
        hook = getattr(listener, "on_forget", None)
        if callable(hook) and id(listener) not in seen:
            seen.add(id(listener))
            hook(receipt)


def listeners_of(trainer: pl.Trainer | None) -> list[object]:
    """Returns who may have an `on_forget`: a trainer's module, data module and callbacks.

    Args:
        trainer: The trainer, or None.
    """
    if trainer is None:
        return []
    return [trainer.lightning_module, trainer.datamodule, *trainer.callbacks]  # type: ignore[attr-defined]


class DeletionHook(pl.Callback):
    """Gives any trainer a `forget`, and keeps a served model in step with the store.

    Before each batch of a test, a validation or a prediction it looks whether a request has come in, from this or
    another process, swaps the served model to its survivors, and calls `on_forget(receipt)` on the module, the data
    module and the callbacks that have it.

    Args:
        store: The store's folder.

    Example:
        >>> hook = DeletionHook("runs/s3t")
        >>> trainer = pl.Trainer(callbacks=[hook], logger=False)
    """

    def __init__(self, store: str | Path) -> None:
        self.store = Path(store)
        self._trainer: pl.Trainer | None = None
        self._seen: int | None = None
        self._opened: Store | None = None

    def forget(self, subjects: Iterable[Any], strict: bool = True) -> Receipt:
        """Removes subjects from the model: revokes every unit that they reached, and erases it.

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.

        Returns:
            What was revoked and erased, and what serves now.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
            StoreError: There is no store.
        """
        receipt = self._open().forget(subjects, strict=strict)
        self.poll()
        return receipt

    def poll(self) -> list[Receipt]:
        """Looks for requests that came in since the last look, and tells the listeners.

        Returns:
            Their receipts.
        """
        store = self._open()
        newest = store.request_number
        if newest == self._seen:
            return []
        module = self._trainer.lightning_module if self._trainer is not None else None
        refresh = getattr(module, "refresh", None)
        if callable(refresh):
            refresh()
        receipts = store.receipts(after=self._seen or 0)
        self._seen = newest
        for receipt in receipts:
            notify(receipt, listeners_of(self._trainer))
        return receipts

    def attach(self, trainer: pl.Trainer) -> None:
        """Takes a trainer whose module, data module and callbacks are told of requests.

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
            self._seen = self._open().request_number

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

    def _open(self) -> Store:
        if self._opened is None:
            self._opened = Store.open(self.store)
            self._seen = self._opened.request_number if self._seen is None else self._seen
        return self._opened
