"""The scheduler of a fit that trains several units at the same time."""

from __future__ import annotations

import warnings
from contextlib import closing

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_s3t.callbacks.fit_store import FitStore
from lightning_s3t.callbacks.lightning_internals import without_running_state
from lightning_s3t.callbacks.parallel.messages import Advanced, Ended, Failed, FromWorker, Replanned, Warned
from lightning_s3t.callbacks.parallel.package import Package, pack, try_to_pack
from lightning_s3t.callbacks.parallel.recorded_logs import write_calls
from lightning_s3t.callbacks.parallel.schedule import Schedule
from lightning_s3t.callbacks.parallel.stand_ins import stand_ins
from lightning_s3t.callbacks.parallel.unpicklable import find_unpicklable
from lightning_s3t.callbacks.parallel.workers import Hand, Workers
from lightning_s3t.callbacks.progress import UnitProgress
from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_fit import UnitFit
from lightning_s3t.errors import UnsupportedError

_LOOK_UP = 1.0  # seconds after which it is looked whether the fit was told to end


class ParallelFit:
    """Trains the units of a plan in several processes.

    A unit begins when its parent is in the store. Each is trained as it would be alone, in one process, so that the
    bits are the same: rows of several units in one batch would be summed up in another order.

    Args:
        unit_fit: Trains a unit.
        fit_store: The store, and the plan of what to build.
        unfreezing: Attached to the module.
        units: How many units may be trained at the same time.
    """

    def __init__(self, unit_fit: UnitFit, fit_store: FitStore, unfreezing: SliceUnfreezing, units: int) -> None:
        self._unit_fit = unit_fit
        self._fit_store = fit_store
        self._unfreezing = unfreezing
        self._units = units
        self._first_step = 0
        self._replanned: Replanned | None = None

    @property
    def is_worth_it(self) -> bool:
        """Whether any two units could be trained at the same time."""
        return min(self._units, Schedule(self._fit_store.plan.build).width) > 1

    def run(self, trainer: pl.Trainer) -> None:
        """Builds every unit of the plan; takes the place of the trainer's fit loop.

        Args:
            trainer: The trainer.

        Raises:
            Exception: What a unit's training has raised; the units that are done stay.
            WorkerError: A process has died.
        """
        with self._unit_fit.prepared(trainer) as reset:
            reset.restore()
            with closing(self._pack(trainer)) as package:
                try:
                    with Workers(package) as workers:
                        while not self._build_all(trainer, workers):
                            self._replan(workers)
                        workers.finish()
                except BaseException:
                    self._fit_store.clear_attempts()
                    raise

    def _pack(self, trainer: pl.Trainer) -> Package:
        builder = self._unfreezing.builder
        assert builder is not None
        self._unfreezing.share()
        with without_running_state(trainer):
            replace = stand_ins(trainer, experiments=True)
            objects = (trainer, self._unit_fit, self._fit_store, self._unfreezing)
            return pack(objects, replace, share=builder.frozen_tensors().values())

    def _replan(self, workers: Workers) -> None:
        self._fit_store.replan()
        self._replanned = Replanned(self._fit_store.plan, self._fit_store.forgotten, self._fit_store.digests)
        workers.send_all(self._replanned)

    def _build_all(self, trainer: pl.Trainer, workers: Workers) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""
        schedule = Schedule(self._fit_store.plan.build)
        for hand in workers.start(min(self._units, schedule.width)):
            if self._replanned is not None:  # it was given the first plan
                hand.send(self._replanned)
        outdated = False
        with closing(self._unit_fit.make_progress(trainer)) as progress:
            while not schedule.done:
                for hand in workers.idle():
                    planned = schedule.take()
                    if planned is None:
                        break
                    progress.start(planned.unit)
                    hand.build(planned)
                for hand, message in workers.listen(_LOOK_UP):
                    self._hear(trainer, hand, message, schedule, progress)
                    if isinstance(message, Ended) and self._fit_store.outdated():
                        outdated = True
                        schedule.halt()
                if trainer.received_sigterm:  # type: ignore[attr-defined]
                    raise SIGTERMException
        return not outdated

    def _hear(
        self, trainer: pl.Trainer, hand: Hand, message: FromWorker, schedule: Schedule, progress: UnitProgress
    ) -> None:
        if isinstance(message, Failed):
            raise message.exception()
        if isinstance(message, Warned):
            warnings.showwarning(message.text, message.category, message.filename, message.line)
        elif isinstance(message, Advanced):
            progress.show(message.unit, message.share)
        elif isinstance(message, Ended):
            hand.unit = None
            progress.finish_unit(message.unit)
            if message.revoked is not None:
                rank_zero_info(f"S3T: {message.revoked}")
                schedule.give_up(message.unit)
                return
            schedule.end(message.unit)
            self._unit_fit.trained.append(message.unit)
            write_calls(message.calls, trainer.loggers, self._first_step)
            self._first_step += message.steps


def check_sendable(trainer: pl.Trainer, data: TrainingData, unfreezing: SliceUnfreezing) -> None:
    """Checks that trainer, module, data and callbacks can be sent to other processes, before anything is changed.

    Args:
        trainer: The trainer, in `on_fit_start`.
        data: The training data.
        unfreezing: Attached to the module.

    Raises:
        UnsupportedError: Naming what cannot be sent.
    """
    with without_running_state(trainer):
        replace = stand_ins(trainer)
        try:
            try_to_pack((trainer, data, unfreezing), replace)
            return
        except Exception as raised:
            error: Exception = raised
        module = trainer.lightning_module
        parts = {
            type(module).__name__: module,
            "the data set": data.dataset,
            "the train dataloader": data.loader,
            "the data module": trainer.datamodule,  # type: ignore[attr-defined]
            **{type(callback).__name__: callback for callback in trainer.callbacks},  # type: ignore[attr-defined]
            "the profiler": trainer.profiler,  # type: ignore[attr-defined]
            "the trainer": trainer,
        }
        found = find_unpicklable({name: part for name, part in parts.items() if part is not None}, replace)
    path, culprit, error = found if found is not None else ("the trainer", trainer, error)
    raise UnsupportedError(
        f"{path} ({type(culprit).__name__}) cannot be sent to another process: {error}. With parallel_units, units are "
        "trained in processes of their own. Put functions and classes at the top level of a module that can be "
        "imported, open files and connections where they are used, or train one unit at a time: S3T(parallel_units=1)."
    ) from error
