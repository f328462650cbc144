"""The deletion hook: adds `forget` to a trainer, and keeps a served model up to date with the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_s3t.serving.notifier import Answer, Notifier, listeners_of
from lightning_s3t.serving.request_methods import RequestMethods
from lightning_s3t.store import RequestRecord, Store


class DeletionHook(RequestMethods, pl.Callback):
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

    @override
    def _request(self, ask: Callable[[Store], Answer]) -> Answer:
        return self._notifier.answer(self._listeners(), ask)

    @property
    def _notifier(self) -> Notifier:
        # its own connection: requests come before, during and after a fit, but a fit's store is open only during the
        # fit
        if self._opened is None:
            self._opened = Notifier(Store.open(self.store))
        return self._opened

    def _listeners(self) -> list[object]:
        return [*listeners_of(self._trainer), self]  # itself, so that `poll` returns the requests since the last one
