"""Processes of a fit's units, seen from the script's: started, listened to, ended."""

from __future__ import annotations

import contextlib
import pickle
import signal
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.errors import UnsupportedError, WorkerError
from lightning_s3t.executors.processes.forkserver import ForkServer
from lightning_s3t.executors.processes.messages import Begin, FromUnit, Noted, Trained, Warned
from lightning_s3t.executors.processes.package import Package
from lightning_s3t.executors.processes.packing import find_unpicklable, pack
from lightning_s3t.executors.processes.plain_fork import PlainFork
from lightning_s3t.executors.processes.process_settings import ProcessSettings
from lightning_s3t.executors.processes.server import Ended
from lightning_s3t.executors.processes.substitutes import substitutes

_SHOWN = 5  # paths in a message
_PATIENCE = 5.0  # seconds within which a unit's process ends by itself after its parent has died


class Launcher(Protocol):
    """Starts a process for each unit.

    Attributes:
        shares_memory: Whether a process that only waits takes next to no memory.
        sources: File descriptors to wait for: one is readable when a process has ended.
    """

    shares_memory: bool
    sources: Collection[Any]

    def fork(self, number: int, descriptor: int) -> None:
        """Start a process with this end of a channel."""

    def learn(self, modules: tuple[str, ...]) -> None:
        """Record the modules that units import."""

    def kill(self, number: int) -> Collection[Ended]:
        """End one, and wait for its end. Return which other processes have ended, if nothing else reports them."""

    def ended(self, source: Any) -> Iterable[Ended]:
        """Return which processes have ended, when a source is readable."""

    def close(self) -> None:
        """End all processes."""


class UnitProcess:
    """A unit's process.

    Args:
        number: Its number.
        channel: To it.

    Attributes:
        what: Its activity, for messages: "unit 0/0-1 was trained".
        over: Whether it has sent its last.
    """

    def __init__(self, number: int, channel: Connection) -> None:
        self.number = number
        self.channel = channel
        self.what = "it waited for a unit"
        self.over = False

    def tell(self, message: Any) -> None:
        """Send the process a message.

        Args:
            message: What.
        """
        # one that has died is noticed by its end, which says how
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send_bytes(pickle.dumps(message))

    def messages(self) -> Iterator[FromUnit]:
        """Return the messages of the process since the last time."""
        try:
            while not self.closed and self.channel.poll():
                yield pickle.loads(self.channel.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.over = True

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.channel.closed

    def note(self, path: Path) -> None:
        """Tell the process that the file which it is about to write is on the list for erasure.

        Args:
            path: The file.
        """
        self.tell(Noted())

    def close(self) -> None:
        """Stop listening to it."""
        self.channel.close()


class UnitProcesses:
    """Starts processes with the state that a fit found, and listens to them.

    Args:
        launcher: Starts them.
        capacity: Number of processes that may work at the same time.

    Attributes:
        capacity: Number of processes that may work at the same time.
    """

    def __init__(self, launcher: Launcher, capacity: int = 1) -> None:
        self.capacity = capacity
        self._number = 0
        self._ended: set[int] = set()
        self._ends: list[Ended] = []  # received while waiting for another end, and not yet reported
        self._spare: UnitProcess | None = None
        self._started: list[UnitProcess] = []
        self._memory = KeptInMemory()
        self._launcher = launcher

    def start(self, begin: Begin, what: str, another: bool = False) -> UnitProcess:
        """Start a job in a process.

        Args:
            begin: The job.
            what: The same, for messages: "unit 0/0-1 was trained".
            another: Whether one more process will be needed later. It is forked in advance, if that costs no memory: it
                is ready when this one is done, and does not know its job yet.
        """
        process, self._spare = self._spare or self._fork(), None
        process.what = what
        process.tell(begin)
        if another and self._launcher.shares_memory:
            self._spare = self._fork()
        return process

    def listen(self, processes: Sequence[UnitProcess], seconds: float) -> Iterator[tuple[UnitProcess, FromUnit]]:
        """Yield the messages of processes, except warnings, which are shown; return soon after a message.

        Args:
            processes: Those to listen to. A process must be closed after its last message.
            seconds: For how long at most.

        Raises:
            WorkerError: A process has died.
        """
        channels = {process.channel: process for process in processes if not process.over}
        sources = list(self._launcher.sources)
        ready = wait([*channels, *sources], 0 if self._ends else seconds)
        for source in ready:
            if source in channels:
                yield from self._heard(channels[source])
        ended, self._ends = self._ends, []
        ended += [end for source in sources if source in ready for end in self._launcher.ended(source)]
        self._ended.update(end.number for end in ended)
        for end in ended:
            if self._spare is not None and self._spare.number == end.number:
                self._spare = None
            for process in processes:
                if process.number == end.number and not process.closed:
                    yield from self._heard(process)  # its last message
                    if not process.closed:
                        raise describe_death(process.what, end.code)

    def learn(self, modules: tuple[str, ...]) -> None:
        """Import the modules that the rehearsal imported once for all units.

        Modules that a unit imports during training are excluded: their import may draw random numbers, which the next
        unit would not do.

        Args:
            modules: The modules.
        """
        self._launcher.learn(modules)

    def kill(self, process: UnitProcess) -> None:
        """End a process, and wait until it has ended.

        Args:
            process: Which.
        """
        if process.number not in self._ended:
            others = self._launcher.kill(process.number)
            self._ended.update(end.number for end in others)
            self._ends += others
        process.close()

    def say_what_was_kept(self) -> None:
        """Name data that callbacks kept in memory, since it was lost with the units' processes."""
        self._memory.say()

    def close(self) -> None:
        """End all processes; when this returns, none can write any more."""
        self._launcher.close()
        # if their parent has died, they end by themselves
        open_channels = {process.channel for process in self._started if not process.closed}
        deadline = time.monotonic() + _PATIENCE
        while open_channels and time.monotonic() < deadline:
            for channel in wait(list(open_channels), _PATIENCE):
                assert isinstance(channel, Connection)
                try:
                    channel.recv_bytes()
                except (EOFError, OSError):
                    open_channels.discard(channel)
                    channel.close()

    def _fork(self) -> UnitProcess:
        self._number += 1
        ours, theirs = Pipe()
        with theirs:
            self._launcher.fork(self._number, theirs.fileno())
        process = UnitProcess(self._number, ours)
        self._started = [*(earlier for earlier in self._started if not earlier.closed), process]
        return process

    def _heard(self, process: UnitProcess) -> Iterator[tuple[UnitProcess, FromUnit]]:
        for message in process.messages():
            if isinstance(message, Warned):
                show_warning(message)
                continue
            self._memory.note(message)
            yield process, message
            if process.closed:
                return


class KeptInMemory:
    """The data that callbacks kept in the memory of units' processes."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}  # in the order of their coming

    def note(self, message: FromUnit) -> None:
        """Note what a unit's process says of it.

        Args:
            message: Any message of the process.
        """
        if isinstance(message, Trained):
            self._paths.update(dict.fromkeys(message.memory))

    def say(self) -> None:
        """Name it, since it was lost with the processes."""
        if self._paths:
            paths = list(self._paths)
            shown = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
            rank_zero_info(
                f"S3T: callbacks kept data in memory while units were trained: {shown}. It was lost when the units' "
                "processes ended. Log it, or write it to a file (S3T.register_file has it erased with its unit)."
            )


def show_warning(warned: Warned) -> None:
    """Show a warning of a unit's process, as if it had been raised here.

    Args:
        warned: The warning.
    """
    # not `showwarning`: the script's filters decide
    warnings.warn_explicit(warned.text, warned.category, warned.filename, warned.line)


def launch(trainer: pl.Trainer, data: TrainingData, training: UnitTraining, settings: UnitSettings) -> Launcher:
    """Return a launcher of processes on this machine, with the state that a fit found.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        training: Trains a unit.
        settings: The settings of units.

    Raises:
        UnsupportedError: Something cannot be sent to another process; named.
    """
    if settings.isolation == "fork":
        return PlainFork(trainer, training, ProcessSettings.capture())
    with closing(pack_fit(trainer, data, training)) as package:
        return ForkServer(package)


def pack_fit(trainer: pl.Trainer, data: TrainingData, training: UnitTraining) -> Package:
    """Return the objects of a fit, for the processes that train its units.

    Args:
        trainer: The trainer, when all setup hooks have run.
        data: The training data.
        training: Trains a unit.

    Raises:
        UnsupportedError: Something cannot be sent to another process; named.
    """
    replace = substitutes(trainer)
    try:
        return pack((trainer, training, ProcessSettings.capture()), replace)
    except Exception as error:
        raise _unsendable(trainer, data, replace, error) from error


def describe_death(what: str, code: int, where: str = "") -> WorkerError:
    """Return the error for a unit's process that has died.

    Args:
        what: Its activity: "unit 0/0-1 was trained".
        code: Its exit code, or the negative number of the signal that has killed it.
        where: The machine: " on node-3"; empty for this one.
    """
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}, {signal.Signals(-code).name}"
    return WorkerError(
        f"While {what}{where}, its process died ({how}). If the system killed it, there was not enough memory for "
        "all units at the same time: use a smaller S3T(parallel_units=...). Finished units are in the store; the "
        "next fit continues from there."
    )


def _unsendable(
    trainer: pl.Trainer, data: TrainingData, replace: Mapping[int, object], error: Exception
) -> UnsupportedError:
    """Return the error that names the object which cannot be sent to another process."""
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
        "separate process that starts from the state which the fit found. Open files, locks and connections where "
        "they are used, or leave them out in a __getstate__; or fork the units from this process, on one CPU thread: "
        "S3T(isolation='fork')."
    )
