"""A fit whose units are trained in processes of their own, one or several at a time."""

from __future__ import annotations

import contextlib
import pickle
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_s3t.callbacks.fit_store import FitStore
from lightning_s3t.callbacks.isolation.forkserver import ForkServer
from lightning_s3t.callbacks.isolation.messages import (
    Advanced,
    Failed,
    FromUnit,
    Noted,
    Rehearse,
    Rehearsed,
    Trained,
    Warned,
    Writes,
)
from lightning_s3t.callbacks.isolation.package import pack
from lightning_s3t.callbacks.isolation.plain_fork import PlainFork
from lightning_s3t.callbacks.isolation.process_settings import ProcessSettings
from lightning_s3t.callbacks.isolation.recorded_logs import write_calls
from lightning_s3t.callbacks.isolation.schedule import Schedule
from lightning_s3t.callbacks.isolation.server import Ended
from lightning_s3t.callbacks.isolation.substitutes import substitutes
from lightning_s3t.callbacks.isolation.unpicklable import find_unpicklable
from lightning_s3t.callbacks.progress import UnitProgress
from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unit_plan import PlannedUnit
from lightning_s3t.callbacks.unit_settings import UnitSettings
from lightning_s3t.callbacks.unit_store import BegunUnit, UnitStore
from lightning_s3t.callbacks.unit_training import UnitResult, UnitTraining
from lightning_s3t.errors import RevokedError, UnsupportedError, WorkerError
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.randomness import seeded

_PATIENCE = 5.0  # seconds in which a unit's process ends by itself once what has forked it has died
_SHOWN = 5  # paths in a message
_LOOK_UP = 0.1  # seconds after which it is looked for requests, and whether the fit was told to end


class Launcher(Protocol):
    """What starts a process for each unit."""

    def fork(self, number: int, descriptor: int) -> None:
        """Starts one, which has this end of a channel."""

    def sources(self) -> list[Any]:
        """Returns what to wait for: something of it is readable when a process has ended."""

    def learn(self, modules: tuple[str, ...]) -> None:
        """Takes note of what units import."""

    def kill(self, number: int) -> None:
        """Ends one, and waits until it has ended."""

    def ended(self, source: Any) -> Iterable[Ended]:
        """Returns which processes have ended, when a source is readable."""

    def close(self) -> None:
        """Ends all of them."""


class UnitProcess:
    """A unit's process, seen from the script's.

    Args:
        channel: To it.

    Attributes:
        over: Whether it has sent its last.
    """

    def __init__(self, channel: Connection) -> None:
        self.channel = channel
        self.over = False

    def tell(self, message: Any) -> None:
        """Tells the process something.

        Args:
            message: What.
        """
        # one that has died is noticed by its end, which says how
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send_bytes(pickle.dumps(message))

    def messages(self) -> Iterator[FromUnit]:
        """Returns what the process has said since the last time."""
        try:
            while self.channel.poll():
                yield pickle.loads(self.channel.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.over = True


@dataclass
class RunningUnit:
    """A unit that a process trains.

    Attributes:
        begun: The unit, in the store.
        process: The process.
    """

    begun: BegunUnit
    process: UnitProcess

    @property
    def unit(self) -> UnitId:
        """Which unit."""
        return self.begun.planned.unit


class IsolatedFit:
    """Trains the units of a plan, each in a process of its own that starts from what the fit has found.

    Nothing that a unit leaves behind can reach another: only its tensors, its record, what it told the loggers and the
    names of the files that it wrote come out of its process. A unit begins when its parent is in the store. Each is
    trained as it would be alone, so the bits are the same however many are trained at a time.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        training: Trains a unit.
        settings: How units are trained.

    Attributes:
        trained: The units that have been trained.

    Raises:
        UnsupportedError: Something cannot be sent to another process; named.
    """

    def __init__(self, trainer: pl.Trainer, data: TrainingData, training: UnitTraining, settings: UnitSettings) -> None:
        self._trainer = trainer
        self._settings = settings
        self._running: dict[int, RunningUnit] = {}
        self._number = 0
        self._first_step = 0
        self._memory: dict[str, None] = {}  # in the order of their coming
        self.trained: list[UnitId] = []
        self._launcher = self._launch(trainer, data, training)

    def rehearse(self) -> dict[str, Any]:
        """Has a process run the fit up to its first batch, so that what is wrong shows before anything is changed.

        Returns:
            The trainer's settings that bear on what is learnt.

        Raises:
            Exception: What the rehearsal has raised.
            WorkerError: The process has died.
        """
        what = "the fit was tried"
        process = self._fork()
        process.tell(Rehearse())
        while True:
            sources = self._launcher.sources()
            ready = wait([process.channel, *sources], _LOOK_UP)
            for message in process.messages():
                if isinstance(message, Rehearsed):
                    process.channel.close()
                    return message.settings
                if isinstance(message, Failed):
                    raise message.exception(what)
                if isinstance(message, Warned):
                    warnings.showwarning(message.text, message.category, message.filename, message.line)
            for source in sources:
                for ended in self._launcher.ended(source) if source in ready else ():
                    raise _death(f"While {what}, its process", ended.code)
            self._check_signals()

    def run(self, units: UnitStore, fit_store: FitStore) -> None:
        """Builds every unit of the plan.

        Args:
            units: Begins and commits units in the store.
            fit_store: The store, and the plan of what to build.

        Raises:
            Exception: What a unit's training has raised; the units that are done stay.
            WorkerError: A process has died.
        """
        with seeded():
            try:
                while not self._build_all(units, fit_store):
                    fit_store.replan()
                self._say_what_was_kept()
            except BaseException:
                self._launcher.close()
                self._wait_for_ends()
                fit_store.clear_attempts()
                raise

    def close(self) -> None:
        """Ends all processes."""
        self._launcher.close()

    def _launch(self, trainer: pl.Trainer, data: TrainingData, training: UnitTraining) -> Launcher:
        settings = ProcessSettings.capture()
        if self._settings.isolation == "fork":
            return PlainFork(trainer, training, settings)
        replace = substitutes(trainer)
        try:
            package = pack((trainer, training, settings), replace)
        except Exception as error:
            raise _unsendable(trainer, data, replace, error) from error
        with closing(package):
            return ForkServer(package)

    def _fork(self) -> UnitProcess:
        self._number += 1
        ours, theirs = Pipe()
        with theirs:
            self._launcher.fork(self._number, theirs.fileno())
        return UnitProcess(ours)

    def _build_all(self, units: UnitStore, fit_store: FitStore) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""
        plan = fit_store.plan.build
        schedule = Schedule(plan)
        outdated = False
        with closing(UnitProgress.of(self._trainer, plan, self._settings)) as progress:
            while not schedule.done:
                while len(self._running) < self._settings.parallel_units:
                    planned = schedule.take()
                    if planned is None:
                        break
                    self._begin(planned, units, schedule, progress)
                self._listen(units, schedule, progress)
                if fit_store.outdated():
                    outdated = True
                    schedule.halt()
                    self._end_revoked(schedule, progress)
                self._check_signals()
        return not outdated

    def _begin(self, planned: PlannedUnit, units: UnitStore, schedule: Schedule, progress: UnitProgress) -> None:
        begun = units.begin(planned)
        if begun is None:
            rank_zero_info(f"S3T: Unit {planned.unit} was revoked while the fit ran.")
            schedule.give_up(planned.unit)
            return
        progress.start(planned.unit)
        process = self._fork()
        self._running[self._number] = RunningUnit(begun, process)
        process.tell(begun.task)

    def _listen(self, units: UnitStore, schedule: Schedule, progress: UnitProgress) -> None:
        processes = {number: running.process for number, running in self._running.items()}
        channels = {process.channel: number for number, process in processes.items() if not process.over}
        sources = self._launcher.sources()
        ready = wait([*channels, *sources], _LOOK_UP)
        for source in ready:
            if source in channels:
                self._hear(channels[source], units, schedule, progress)
        for source in sources:
            if source in ready:
                for ended in self._launcher.ended(source):
                    self._hear(ended.number, units, schedule, progress)  # what it has said last
                    if ended.number in self._running:
                        unit = self._running[ended.number].unit
                        raise _death(f"The process that trained unit {unit}", ended.code)

    def _hear(self, number: int, units: UnitStore, schedule: Schedule, progress: UnitProgress) -> None:
        running = self._running.get(number)
        if running is None:
            return
        for message in running.process.messages():
            if isinstance(message, Failed):
                raise message.exception(f"unit {running.unit} was trained")
            if isinstance(message, Warned):
                warnings.showwarning(message.text, message.category, message.filename, message.line)
            elif isinstance(message, Advanced):
                progress.show(running.unit, message.share)
            elif isinstance(message, Writes):
                running.begun.note_file(Path(message.path))
                running.process.tell(Noted())
            elif isinstance(message, Trained):
                self._launcher.learn(message.modules)
                self._memory.update(dict.fromkeys(message.memory))
                self._commit(running, message, units, schedule)
                progress.finish_unit(running.unit)
                self._forget(number)
                return

    def _commit(self, running: RunningUnit, message: Trained, units: UnitStore, schedule: Schedule) -> None:
        try:
            units.commit(running.begun, UnitResult(message.tensors, message.record, message.score))
        except RevokedError as error:
            rank_zero_info(f"S3T: {error}")
            schedule.give_up(running.unit)  # metrics of what was revoked are nobody's to see
            return
        schedule.end(running.unit)
        self.trained.append(running.unit)
        write_calls(message.calls, self._trainer.loggers, self._first_step)
        self._first_step += message.steps

    def _end_revoked(self, schedule: Schedule, progress: UnitProgress) -> None:
        """Ends the units that a request has reached, in mid-training."""
        for number, running in list(self._running.items()):
            try:
                running.begun.attempt.check()
            except RevokedError as error:
                self._launcher.kill(number)
                running.begun.attempt.abandon()
                rank_zero_info(f"S3T: {error}")
                schedule.give_up(running.unit)
                progress.finish_unit(running.unit)
                self._forget(number)

    def _say_what_was_kept(self) -> None:
        if self._memory:
            paths = ", ".join(list(self._memory)[:_SHOWN]) + (", ..." if len(self._memory) > _SHOWN else "")
            rank_zero_info(
                f"S3T: callbacks have kept something in memory while units were trained: {paths}. It ended with the "
                "units' processes. Log it or write it to a file (S3T.register_file has it erased with its unit)."
            )

    def _check_signals(self) -> None:
        if self._trainer.received_sigterm:  # type: ignore[attr-defined]
            raise SIGTERMException

    def _wait_for_ends(self) -> None:
        """Waits until no unit's process can write any more: what they have written is erased next."""
        channels = {running.process.channel for running in self._running.values()}
        deadline = time.monotonic() + _PATIENCE
        while channels and time.monotonic() < deadline:
            for channel in wait(list(channels), _LOOK_UP):
                try:
                    channel.recv_bytes()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    channels.discard(channel)  # type: ignore[arg-type]

    def _forget(self, number: int) -> None:
        self._running.pop(number).process.channel.close()


def _death(process: str, code: int) -> WorkerError:
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}, {signal.Signals(-code).name}"
    return WorkerError(
        f"{process} died ({how}). If the system has killed it, there was not enough memory for all units at the same "
        "time: use a smaller S3T(parallel_units=...). What was done is in the store; the next fit goes on from there."
    )


def _unsendable(
    trainer: pl.Trainer, data: TrainingData, replace: Mapping[int, object], error: Exception
) -> UnsupportedError:
    """Returns the error that names what cannot be sent to another process."""
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
    return UnsupportedError(
        f"{path} ({type(culprit).__name__}) cannot be sent to another process: {error}. Each unit is trained in a "
        "process of its own, which starts from what the fit has found. Open files, locks and connections where they "
        "are used, or leave them out in a __getstate__; or have the units forked from this process, on one thread of "
        "a CPU: S3T(isolation='fork')."
    )
