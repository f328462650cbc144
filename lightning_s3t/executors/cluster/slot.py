"""What runs on a machine of the cluster: an actor that starts units' processes and passes their messages on.

An actor has the resources of one GPU, or of some cores. It has a fork server of its own, as a fit on one machine has,
so each unit is trained in a fresh process whatever Ray does with its own processes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from lightning_s3t.engine.package_alias import alias_pytorch_lightning
from lightning_s3t.executors.cluster.fingerprint import Fingerprint, differences, fingerprint_apart
from lightning_s3t.executors.processes.forkserver import ForkServer, warm_up
from lightning_s3t.executors.processes.messages import Failed
from lightning_s3t.executors.processes.package import Header, Package
from lightning_s3t.executors.processes.server import Ended

# the variables that bits depend on start with these; everything else in the environment is the machine's own
_OF_BITS = (
    "ATEN_",
    "CUBLAS",
    "CUDNN_",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "NVIDIA_TF32",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PL_",
    "PYTHONHASHSEED",
    "PYTORCH_",
    "TORCH",
)
_WAITS = 30.0  # seconds that the actor lets the script wait for a message; only shows that it is alive


def variables_of_bits(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a unit's bits may depend on.

    Args:
        environment: All of them.

    Example:
        >>> variables_of_bits({"OMP_NUM_THREADS": "4", "AWS_SECRET_ACCESS_KEY": "...", "HOME": "/root"})
        {'OMP_NUM_THREADS': '4'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_OF_BITS) and not name.endswith(("_DIR", "_HOME", "_PATH"))
    }


@dataclass(frozen=True)
class Setup:
    """To a slot: the fit.

    Attributes:
        package: A list of one reference to the memory of the package with the fit's objects.
        header: Its layout.
        on_device: Whether tensors of it go to an accelerator when it is loaded.
        expected: The properties of the script's machine.
        device: The type of the device that trains units.
        variables: The script's environment variables that bits depend on.
        folder: The script's working directory; None for the actor's own.
        path: The script's search path of modules, which comes after the machine's own.
        arguments: The script's command line.
        aliased: Whether `pytorch_lightning` is another name of `lightning.pytorch`.
        modules: The modules that units import.
    """

    package: list[Any]
    header: Header
    on_device: bool
    expected: Fingerprint
    device: str
    variables: Mapping[str, str]
    folder: str | None
    path: list[str]
    arguments: list[str]
    aliased: bool
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """From a slot: it can start processes.

    Attributes:
        package: The path of the package's memory, for other slots of the machine.
    """

    package: str


@dataclass(frozen=True)
class Differs:
    """From a slot: the machine differs from the script's, so units would have other bits.

    Attributes:
        how: The differences.
    """

    how: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """To a slot: start a process.

    Attributes:
        number: Its number.
        begin: Its job, pickled.
        another: Whether one more process will be needed later.
    """

    number: int
    begin: bytes
    another: bool


@dataclass(frozen=True)
class Say:
    """To a slot: send a process a message.

    Attributes:
        number: The process.
        message: Pickled.
    """

    number: int
    message: bytes


@dataclass(frozen=True)
class End:
    """To a slot: end a process. `Ended` says when it has."""

    number: int


@dataclass(frozen=True)
class Learn:
    """To a slot: units import these modules."""

    modules: tuple[str, ...]


@dataclass(frozen=True)
class Close:
    """To a slot: end all processes. The end of process 0 says that they have ended."""


Command = Start | Say | End | Learn | Close


@dataclass
class _Process:
    """A unit's process, by its number in the fork server."""

    number: int
    channel: Connection


class Slot:
    """Starts units' processes on a machine, for a script on another. Ray makes an actor of it.

    Two threads call it: one gives it commands, the other waits for messages and does all the work.
    """

    def __init__(self) -> None:
        self._server: ForkServer | None = None
        self._package: Package | None = None
        self._commands: deque[Command] = deque()
        self._awake, self._wake = os.pipe()
        self._forked = 0
        self._spare: _Process | None = None
        self._running: dict[int, _Process] = {}
        self._messages: list[tuple[int, bytes | Ended]] = []

    def begin(self, setup: Setup, nearby: str | None) -> Ready | Differs | Failed:
        """Load the objects of a fit, if this machine is like the script's.

        Args:
            setup: The fit.
            nearby: The memory of the package in another process of this machine; None if there is none.
        """
        _adopt(setup)
        warm_up()
        with ThreadPoolExecutor() as threads:
            found = threads.submit(fingerprint_apart, setup.device)
            package = _open(nearby, setup) if nearby is not None else None
            try:
                different = differences(setup.expected, found.result())
            except OSError as error:
                different = [str(error)]
        if different:
            return Differs(tuple(different))
        try:
            self._package = package or Package.of(_fetch(setup.package), setup.header, setup.on_device)
            self._server = ForkServer(self._package)
            self._server.learn(setup.modules)
        except Exception as error:
            return Failed.of(error)
        return Ready(f"/proc/{os.getpid()}/fd/{self._package.file.fileno()}")

    def command(self, command: Command) -> None:
        """Take a command.

        Args:
            command: The command.
        """
        self._commands.append(command)
        os.write(self._wake, b"\0")

    def messages(self) -> list[tuple[int, bytes | Ended]]:
        """Carry commands out until processes say something; return what, by their numbers.

        Raises:
            WorkerError: The fork server has ended.
        """
        assert self._server is not None
        open_ = [(number, process) for number, process in self._running.items() if not process.channel.closed]
        channels = {process.channel: number for number, process in open_}
        ready = wait([*self._server.sources, *channels, self._awake], _WAITS)
        for source in ready:
            if source == self._awake:  # the last, since a command may close the others
                self._carry_out()
            elif source in channels:
                self._hear(channels[source])  # type: ignore[index]
            else:
                for ended in self._server.ended(source):
                    self._note_end(ended)
        found, self._messages = self._messages, []
        return found

    def _carry_out(self) -> None:
        assert self._server is not None
        os.read(self._awake, 512)
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, Start):
                process, self._spare = self._spare or self._fork(), None
                self._running[command.number] = process
                _say(process, command.begin)
                if command.another and self._server.shares_memory:
                    self._spare = self._fork()
            elif isinstance(command, Learn):
                self._server.learn(command.modules)
            elif isinstance(command, Close):
                self._server.close()
                self._messages.append((0, Ended(0, 0)))
                return
            elif command.number not in self._running:  # it has ended
                continue
            elif isinstance(command, Say):
                _say(self._running[command.number], command.message)
            else:
                self._kill(command.number)

    def _fork(self) -> _Process:
        assert self._server is not None
        self._forked += 1
        ours, theirs = Pipe()
        with theirs:
            self._server.fork(self._forked, theirs.fileno())
        return _Process(self._forked, ours)

    def _kill(self, number: int) -> None:
        assert self._server is not None
        process = self._running.pop(number)
        for other in self._server.kill(process.number):
            self._note_end(other)
        process.channel.close()
        self._messages.append((number, Ended(number, 0)))

    def _note_end(self, ended: Ended) -> None:
        if self._spare is not None and self._spare.number == ended.number:
            self._spare = None
        for number, process in list(self._running.items()):
            if process.number == ended.number:
                self._hear(number)  # its last messages
                del self._running[number]
                process.channel.close()
                self._messages.append((number, Ended(number, ended.code)))

    def _hear(self, number: int) -> None:
        """Take the messages of a process."""
        process = self._running.get(number)
        if process is None or process.channel.closed:
            return
        try:
            while process.channel.poll():
                self._messages.append((number, process.channel.recv_bytes()))
        except (EOFError, ConnectionResetError):
            process.channel.close()  # its end will be reported


def _say(process: _Process, message: bytes) -> None:
    # one that has died is noticed by its end, which says how
    with contextlib.suppress(OSError):
        process.channel.send_bytes(message)


def _adopt(setup: Setup) -> None:
    """Give this process what the script's has and bits depend on."""
    for name in variables_of_bits(os.environ).keys() - setup.variables.keys():
        del os.environ[name]
    os.environ.update(setup.variables)
    if setup.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from actors without one
    if setup.folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(setup.folder)
    sys.path += [place for place in setup.path if place not in sys.path]
    sys.argv = setup.arguments
    if setup.aliased:
        alias_pytorch_lightning()


def _open(path: str, setup: Setup) -> Package | None:
    """Return the package in the memory of another process; None if that cannot be opened."""
    try:
        return Package(open(path, "rb"), setup.header, setup.on_device)
    except OSError:
        return None


def _fetch(package: list[Any]) -> Any:
    import ray

    return ray.get(package[0])
