"""A fit whose units are trained in processes of their own, one or several at a time."""

from __future__ import annotations

import contextlib
import pickle
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from lightning_s3t.callbacks.isolation.messages import Advanced, Build, Failed, FromUnit, Noted, Trained, Warned, Writes
from lightning_s3t.callbacks.isolation.package import Package, pack, try_to_pack
from lightning_s3t.callbacks.isolation.plain_fork import PlainFork
from lightning_s3t.callbacks.isolation.process_settings import ProcessSettings
from lightning_s3t.callbacks.isolation.recorded_logs import write_calls
from lightning_s3t.callbacks.isolation.schedule import Schedule
from lightning_s3t.callbacks.isolation.server import Ended
from lightning_s3t.callbacks.isolation.substitutes import substitutes
from lightning_s3t.callbacks.isolation.unpicklable import find_unpicklable
from lightning_s3t.callbacks.lightning_internals import without_running_state
from lightning_s3t.callbacks.progress import UnitProgress
from lightning_s3t.callbacks.quiet import quiet
from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_plan import PlannedUnit
from lightning_s3t.callbacks.unit_settings import UnitSettings
from lightning_s3t.callbacks.unit_store import BegunUnit, UnitStore
from lightning_s3t.callbacks.unit_training import UnitResult, UnitTraining
from lightning_s3t.errors import RevokedError, UnsupportedError, WorkerError
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.randomness import seeded

_PATIENCE = 5.0  # seconds in which a unit's process ends by itself once what has forked it has died
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


@dataclass
class RunningUnit:
    """A unit that a process trains.

    Attributes:
        begun: The unit, in the store.
        channel: To the process.
        over: Whether it has sent its last.
    """

    begun: BegunUnit
    channel: Connection
    over: bool = False

    @property
    def unit(self) -> UnitId:
        """Which unit."""
        return self.begun.planned.unit

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


class IsolatedFit:
    """Trains the units of a plan, each in a process of its own that starts from what the fit has found.

    Nothing that a unit leaves behind can reach another: only its tensors, its record, what it told the loggers and the
    names of the files that it wrote come out of its process. A unit begins when its parent is in the store. Each is
    trained as it would be alone, so the bits are the same however many are trained at a time.

    Args:
        training: Trains a unit.
        units: Begins and commits units in the store.
        fit_store: The store, and the plan of what to build.
        settings: How units are trained.

    Attributes:
        trained: The units that have been trained.
    """

    def __init__(self, training: UnitTraining, units: UnitStore, fit_store: FitStore, settings: UnitSettings) -> None:
        self._training = training
        self._units = units
        self._fit_store = fit_store
        self._settings = settings
        self._running: dict[int, RunningUnit] = {}
        self._number = 0
        self._first_step = 0
        self.trained: list[UnitId] = []

    def run(self, trainer: pl.Trainer) -> None:
        """Builds every unit of the plan; takes the place of the trainer's fit loop.

        Args:
            trainer: The trainer.

        Raises:
            Exception: What a unit's training has raised; the units that are done stay.
            WorkerError: A process has died.
        """
        with seeded(), quiet(trainer), self._launcher(trainer) as launcher:
            try:
                while not self._build_all(trainer, launcher):
                    self._fit_store.replan()
            except BaseException:
                launcher.close()
                self._wait_for_ends()
                self._fit_store.clear_attempts()
                raise

    @contextmanager
    def _launcher(self, trainer: pl.Trainer) -> Iterator[Launcher]:
        settings = ProcessSettings.capture()
        with ExitStack() as stack:
            if self._settings.isolation == "fork":
                yield stack.enter_context(closing(PlainFork(trainer, self._training, settings)))
            else:
                package = stack.enter_context(closing(self._pack(trainer, settings)))
                yield stack.enter_context(closing(ForkServer(package)))

    def _pack(self, trainer: pl.Trainer, settings: ProcessSettings) -> Package:
        with without_running_state(trainer):
            return pack((trainer, self._training, settings), substitutes(trainer, experiments=True))

    def _build_all(self, trainer: pl.Trainer, launcher: Launcher) -> bool:
        """Builds the plan; False if a deletion request came in, so that there has to be another."""
        plan = self._fit_store.plan.build
        schedule = Schedule(plan)
        outdated = False
        with closing(UnitProgress.of(trainer, plan, self._settings)) as progress:
            while not schedule.done:
                while len(self._running) < self._settings.parallel_units:
                    planned = schedule.take()
                    if planned is None:
                        break
                    self._begin(planned, launcher, schedule, progress)
                self._listen(trainer, launcher, schedule, progress)
                if self._fit_store.outdated():
                    outdated = True
                    schedule.halt()
                    self._end_revoked(launcher, schedule, progress)
                if trainer.received_sigterm:  # type: ignore[attr-defined]
                    raise SIGTERMException
        return not outdated

    def _begin(self, planned: PlannedUnit, launcher: Launcher, schedule: Schedule, progress: UnitProgress) -> None:
        begun = self._units.begin(planned)
        if begun is None:
            rank_zero_info(f"S3T: Unit {planned.unit} was revoked while the fit ran.")
            schedule.give_up(planned.unit)
            return
        progress.start(planned.unit)
        self._number += 1
        ours, theirs = Pipe()
        with theirs:
            launcher.fork(self._number, theirs.fileno())
        self._running[self._number] = running = RunningUnit(begun, ours)
        running.tell(Build(planned.unit, begun.rows, begun.trained))

    def _listen(self, trainer: pl.Trainer, launcher: Launcher, schedule: Schedule, progress: UnitProgress) -> None:
        channels = {running.channel: number for number, running in self._running.items() if not running.over}
        sources = launcher.sources()
        ready = wait([*channels, *sources], _LOOK_UP)
        for source in ready:
            if source in channels:
                self._hear(trainer, launcher, channels[source], schedule, progress)
        for source in sources:
            if source in ready:
                for ended in launcher.ended(source):
                    self._hear(trainer, launcher, ended.number, schedule, progress)  # what it has said last
                    if ended.number in self._running:
                        raise self._death(self._running[ended.number].unit, ended.code)

    def _hear(
        self, trainer: pl.Trainer, launcher: Launcher, number: int, schedule: Schedule, progress: UnitProgress
    ) -> None:
        running = self._running.get(number)
        if running is None:
            return
        for message in running.messages():
            if isinstance(message, Failed):
                raise message.exception(f"unit {running.unit} was trained")
            if isinstance(message, Warned):
                warnings.showwarning(message.text, message.category, message.filename, message.line)
            elif isinstance(message, Advanced):
                progress.show(running.unit, message.share)
            elif isinstance(message, Writes):
                running.begun.note_file(Path(message.path))
                running.tell(Noted())
            elif isinstance(message, Trained):
                launcher.learn(message.modules)
                self._commit(trainer, running, message, schedule)
                progress.finish_unit(running.unit)
                self._forget(number)
                return

    def _commit(self, trainer: pl.Trainer, running: RunningUnit, message: Trained, schedule: Schedule) -> None:
        try:
            self._units.commit(running.begun, UnitResult(message.tensors, message.record, message.score))
        except RevokedError as error:
            rank_zero_info(f"S3T: {error}")
            schedule.give_up(running.unit)  # metrics of what was revoked are nobody's to see
            return
        schedule.end(running.unit)
        self.trained.append(running.unit)
        write_calls(message.calls, trainer.loggers, self._first_step)
        self._first_step += message.steps

    def _end_revoked(self, launcher: Launcher, schedule: Schedule, progress: UnitProgress) -> None:
        """Ends the units that a request has reached, in mid-training."""
        for number, running in list(self._running.items()):
            try:
                running.begun.attempt.check()
            except RevokedError as error:
                launcher.kill(number)
                running.begun.attempt.abandon()
                rank_zero_info(f"S3T: {error}")
                schedule.give_up(running.unit)
                progress.finish_unit(running.unit)
                self._forget(number)

    def _wait_for_ends(self) -> None:
        """Waits until no unit's process can write any more: what they have written is erased next."""
        channels = {running.channel for running in self._running.values()}
        deadline = time.monotonic() + _PATIENCE
        while channels and time.monotonic() < deadline:
            for channel in wait(list(channels), _LOOK_UP):
                try:
                    channel.recv_bytes()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    channels.discard(channel)  # type: ignore[arg-type]

    def _forget(self, number: int) -> None:
        self._running.pop(number).channel.close()

    def _death(self, unit: UnitId, code: int) -> WorkerError:
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}, {signal.Signals(-code).name}"
        return WorkerError(
            f"The process that trained unit {unit} died ({how}). If the system has killed it, there was not enough "
            "memory for all units at the same time: use a smaller S3T(parallel_units=...). What was done is in the "
            "store; the next fit goes on from there."
        )


def check_sendable(trainer: pl.Trainer, data: TrainingData, unfreezing: SliceUnfreezing) -> None:
    """Checks that trainer, module, data and callbacks can be sent to another process, before anything is changed.

    Args:
        trainer: The trainer, in `on_fit_start`.
        data: The training data.
        unfreezing: Attached to the module.

    Raises:
        UnsupportedError: Naming what cannot be sent.
    """
    with without_running_state(trainer):
        replace = substitutes(trainer)
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
        f"{path} ({type(culprit).__name__}) cannot be sent to another process: {error}. Each unit is trained in a "
        "process of its own, which starts from what the fit has found. Open files, locks and connections where they "
        "are used, or leave them out in a __getstate__; or have the units forked from this process, on one thread of "
        "a CPU: S3T(isolation='fork')."
    ) from error
