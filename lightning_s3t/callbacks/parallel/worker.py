"""A process that trains units: it has the script's trainer, module, data and callbacks, and the store."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from multiprocessing.connection import Connection, wait
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_s3t.callbacks.fit_store import FitStore
from lightning_s3t.callbacks.lightning_internals import logged_step, settle_in
from lightning_s3t.callbacks.parallel.messages import (
    Advanced,
    Build,
    Ended,
    Failed,
    Finish,
    FromWorker,
    Ready,
    Replanned,
    ToWorker,
    Warned,
)
from lightning_s3t.callbacks.parallel.package import Package
from lightning_s3t.callbacks.parallel.process_settings import ProcessSettings
from lightning_s3t.callbacks.parallel.recorded_logs import RecordingLogger
from lightning_s3t.callbacks.progress import share_done
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_fit import UnitFit
from lightning_s3t.plan import UnitId

_BETWEEN_ADVANCES = 0.5  # seconds


def work(package: Package, settings: ProcessSettings, number: int, connection: Connection) -> None:
    """Trains the units that the scheduler gives out, until there are none; the main function of the process.

    Args:
        package: The trainer, the fit of units and its store.
        settings: torch's settings in the main process.
        number: The worker's number, from 0.
        connection: To the scheduler.
    """
    # a group of its own: Ctrl-C is the scheduler's to answer, and what ends this process ends its data loaders too
    os.setpgid(0, 0)
    _die_with_parent()
    worker = Worker(number, connection)
    try:
        settings.apply()
        worker.run(*package.load())
    except BaseException as error:
        worker.send(Failed.of(worker.unit, error))


class Worker:
    """The scheduler's hand in another process.

    Args:
        number: The worker's number, from 0.
        connection: To the scheduler.

    Attributes:
        unit: The unit that is trained.
    """

    def __init__(self, number: int, connection: Connection) -> None:
        self.unit: UnitId | None = None
        self._number = number
        self._connection = connection

    def run(self, trainer: pl.Trainer, unit_fit: UnitFit, fit_store: FitStore, unfreezing: SliceUnfreezing) -> None:
        """Trains units.

        Args:
            trainer: The trainer.
            unit_fit: Trains one unit.
            fit_store: The store, not yet opened in this process.
            unfreezing: Puts the stages in place.
        """
        warnings.showwarning = self._warn  # type: ignore[assignment]
        settle_in(trainer)
        unfreezing.check_shared()  # so that it has arrived as it was sent
        _own_checkpoint_folders(trainer, self._number)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, RecordingLogger)]
        for logger in loggers:
            logger.axis = lambda: logged_step(trainer)
        unit_fit.progress = _SentProgress(self)
        with fit_store.joined(), unit_fit.prepared(trainer) as reset:
            self.send(Ready())
            while True:
                order = self._receive()
                if isinstance(order, Finish):
                    return
                if isinstance(order, Replanned):
                    fit_store.adopt(order.plan, order.forgotten, order.digests)
                elif isinstance(order, Build):
                    self.unit = order.planned.unit
                    unit_fit.first_step = 0
                    revoked = unit_fit.build(trainer, reset, order.planned)
                    calls = tuple(call for logger in loggers for call in logger.take())
                    reason = str(revoked) if revoked is not None else None
                    # metrics of what was revoked are nobody's to see
                    self.send(Ended(self.unit, reason, () if reason else calls, unit_fit.first_step))
                    self.unit = None

    def send(self, message: FromWorker) -> None:
        """Tells the scheduler something.

        Args:
            message: What.
        """
        # by value: what torch sends through shared memory is gone if this process ends before it is fetched
        self._connection.send_bytes(pickle.dumps(message))

    def _receive(self) -> ToWorker:
        order: ToWorker = pickle.loads(self._connection.recv_bytes())
        return order

    def _warn(self, message: Any, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        try:
            pickle.dumps(category)
        except Exception:  # a class within a function: the text is what counts
            category = UserWarning
        self.send(Warned(str(message), category, filename, lineno))


class _SentProgress:
    """Tells the scheduler how far the running unit is, now and then."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._sent = 0.0

    def start(self, unit: UnitId) -> None:
        self._sent = time.monotonic()

    def update(self, trainer: pl.Trainer) -> None:
        if self._worker.unit is not None and time.monotonic() - self._sent > _BETWEEN_ADVANCES:
            self._sent = time.monotonic()
            self._worker.send(Advanced(self._worker.unit, share_done(trainer)))

    def finish_unit(self, unit: UnitId) -> None:
        pass  # the scheduler is told by `Ended`


def _own_checkpoint_folders(trainer: pl.Trainer, number: int) -> None:
    """Keeps two workers from choosing the same file name at the same time."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            callback.dirpath = os.path.join(callback.dirpath, f"worker-{number}")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
