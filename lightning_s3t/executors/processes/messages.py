"""The messages between the process that runs a fit and the processes that train its units."""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cloudpickle

from lightning_s3t.errors import WorkerError

if TYPE_CHECKING:  # a process that only passes messages on needs no torch
    from torch import Tensor

    from lightning_s3t.core.floor import Task
    from lightning_s3t.engine.unit_training import FeatureTask, UnitTask
    from lightning_s3t.executors.processes.recorded_logs import LoggerCall
    from lightning_s3t.store.heads.feature_sums import FeatureRows


@dataclass(frozen=True)
class Rehearse:
    """To a unit's process: run a fit up to its first batch, to see whether units can be trained."""


@dataclass(frozen=True)
class Group:
    """The process group of a unit that is trained on several devices.

    Its processes find each other through the key-value store that the script's processes have.

    Attributes:
        address: Its address.
        port: Likewise.
        backend: The backend of its processes.
        name: Of the group; no two have the same.
    """

    address: str
    port: int
    backend: str
    name: str


@dataclass(frozen=True)
class Begin:
    """To a unit's process: its job.

    Attributes:
        task: A unit to train, rows to read for the floor, or a rehearsal.
        group: The process group to join first; None on one device.
    """

    task: UnitTask | FeatureTask | Rehearse
    group: Group | None = None


@dataclass(frozen=True)
class Rehearsed:
    """From a unit's process: units can be trained.

    Attributes:
        settings: The trainer's settings that affect training.
        modules: The installed packages' modules that it had to import.
        row_digests: Digests of each row's contents; empty if not requested, and on all ranks but 0.
    """

    settings: dict[str, Any]
    modules: tuple[str, ...] = ()
    row_digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noted:
    """To a unit's process: the file that it is about to write is on the list for erasure.

    Attributes:
        proof: An empty file that the script has made next to it, for the process to remove: so the script can erase
            what the process writes. None on the script's own machine.
    """

    proof: str | None = None


@dataclass(frozen=True)
class Writes:
    """From a unit's process: it is about to write this file, and waits for `Noted`."""

    path: str


@dataclass(frozen=True)
class Advanced:
    """From a unit's process: how far it is, from 0 to 1."""

    share: float


@dataclass(frozen=True)
class Warned:
    """From a unit's process: a warning, to be shown once for all units."""

    text: str
    category: type[Warning]
    filename: str
    line: int


@dataclass(frozen=True)
class Trained:
    """From a unit's process: the unit is trained.

    Attributes:
        tensors: Its tensors.
        record: Its provenance, but for who was in its rows.
        score: The metric that the script monitors, where higher is better.
        calls: Its logger calls.
        steps: Its number of steps on the loggers' axis.
        memory: Paths to data that the script's callbacks have kept in memory, which is lost when the process ends.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]
    score: float | None
    calls: tuple[LoggerCall, ...]
    steps: int
    memory: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """From a unit's process: the features of rows.

    Attributes:
        task: The task of their targets.
        rows: The rows.
    """

    task: Task
    rows: FeatureRows


@dataclass(frozen=True)
class ReadAll:
    """From a unit's process: the features of all rows have been sent."""


@dataclass(frozen=True)
class Failed:
    """From another process: an error, which ends the fit.

    Attributes:
        pickled: The exception, or None if it cannot be pickled.
        text: Its type and message.
        trace: The traceback.
        time: When, in seconds of the machine's clock.
    """

    pickled: bytes | None
    text: str
    trace: str
    time: float = field(default_factory=time.time)

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """Describe an error.

        Args:
            error: The raised error.
        """
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            pickled = cloudpickle.dumps(error)
            pickle.loads(pickled)  # many exceptions can be pickled but not unpickled
        except Exception:
            return cls(None, f"{type(error).__name__}: {error}", trace)
        return cls(pickled, f"{type(error).__name__}: {error}", trace)

    def exception(self, where: str) -> BaseException:
        """Return the original error, caused by one with the traceback.

        Args:
            where: The activity, for the message.
        """
        error: Any = None
        if self.pickled is not None:
            try:
                error = pickle.loads(self.pickled)
            except Exception:
                error = None
        if not isinstance(error, BaseException):
            error = WorkerError(f"While {where} in a process of its own: {self.text}")
        error.__cause__ = WorkerError(f"While {where} in a process of its own:\n{self.trace}")
        return error


@dataclass(frozen=True)
class Lost:
    """Of a unit's process: it has gone with its machine, and its unit can be trained again.

    Attributes:
        why: The reason, for people.
    """

    why: str


FromUnit = Writes | Advanced | Warned | Trained | Read | ReadAll | Rehearsed | Failed | Lost


def send(channel: socket.socket, message: Any, descriptors: list[int] | None = None) -> None:
    """Send a message, with open files, to a process on this machine.

    Args:
        channel: A Unix socket.
        message: What; pickled.
        descriptors: The files.
    """
    contents = pickle.dumps(message)
    header = len(contents).to_bytes(8, "big")
    socket.send_fds(channel, [header], descriptors or [])
    channel.sendall(contents)


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message, and the open files that came with it.

    Args:
        channel: A Unix socket.

    Raises:
        EOFError: The other end is closed.
    """
    header, descriptors, _, _ = socket.recv_fds(channel, 8, 8)
    header += _exactly(channel, 8 - len(header)) if header else b""
    if not header:
        raise EOFError
    return pickle.loads(_exactly(channel, int.from_bytes(header, "big"))), descriptors


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
