"""The script's side of the processes that fork units: started when they are needed, ended with the fit."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable
from typing import Any

from lightning_s3t.core.interrupts import interrupts_blocked
from lightning_s3t.engine.package_alias import is_aliased
from lightning_s3t.errors import WorkerError
from lightning_s3t.executors.processes.messages import Failed, receive, send
from lightning_s3t.executors.processes.package import Package
from lightning_s3t.executors.processes.server import BeginFit, Ended, Fork, Import, Kill, Loaded, Threaded

# small trainings on a CPU return memory to the system after every step and request it again, which doubles their time;
# glibc reads these variables when a process starts
_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
_COMMAND = "from lightning_s3t.executors.processes.server import main; main()"
_ALIAS = "from lightning_s3t.engine.package_alias import alias_pytorch_lightning; alias_pytorch_lightning(); "


class _Base:
    """The process that has imported everything and forks one for each fit."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._aliased = is_aliased()
        command = _ALIAS + _COMMAND if self._aliased else _COMMAND
        self._channel, theirs = socket.socketpair()
        with theirs, interrupts_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-c", command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )

    def begin(self, begin: BeginFit, package: Package) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            send(self._channel, begin, [theirs.fileno(), package.file.fileno(), 1, 2])
        return ours

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self._aliased == is_aliased() and self._process.poll() is None


_base: _Base | None = None


def warm_up() -> None:
    """Start the process that imports the packages, so that it is ready when a fit needs it."""
    _warm_base()


def _warm_base() -> _Base:
    global _base
    if _base is None or not _base.usable:
        _base = _Base()
    return _base


class ForkServer:
    """The process that forks a fit's units, with the fit's objects in it.

    Args:
        package: The objects to send.

    Attributes:
        shares_memory: Whether units' processes share the loaded objects instead of loading them each.
        sources: File descriptors that are readable when a process has ended.

    Raises:
        Exception: The error that loading the package raised there.
        WorkerError: The process has ended.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._imported: set[str] = set()
        # a device's context does not survive a fork, so objects for a device are loaded in each unit's process
        self.shares_memory = not package.on_device
        answer = self._begin(load_in_unit=package.on_device)
        if isinstance(answer, Threaded):
            self.close()
            self.shares_memory = False
            answer = self._begin(load_in_unit=True)
        if isinstance(answer, Failed):
            self.close()
            raise answer.exception("trainer, module and data were loaded")
        assert isinstance(answer, Loaded)
        self.sources: Collection[Any] = (self._channel,)

    def fork(self, number: int, descriptor: int) -> None:
        """Fork a process for a unit.

        Args:
            number: Its number.
            descriptor: Its end of the channel between it and the script.
        """
        send(self._channel, Fork(number), [descriptor])

    def learn(self, modules: tuple[str, ...]) -> None:
        """Import modules that units import, so that later units find them loaded.

        Args:
            modules: Their names.
        """
        new = tuple(name for name in modules if name not in self._imported)
        if new:
            self._imported.update(new)
            send(self._channel, Import(new))

    def kill(self, number: int) -> Collection[Ended]:
        """End a unit's process, and wait for its end.

        Args:
            number: The process. Its end must not have been reported before.

        Returns:
            The ends of other processes that arrived in the meantime. They are not reported again.
        """
        send(self._channel, Kill(number))
        others = list[Ended]()
        while (ended := self._receive()).number != number:
            others.append(ended)
        return others

    def ended(self, source: Any) -> Iterable[Ended]:
        """Return which processes have ended.

        Args:
            source: One of `sources`, which is readable.

        Raises:
            WorkerError: The one that forks them has.
        """
        return [self._receive()]

    def close(self) -> None:
        """End the server and all running unit processes; when this returns, they have ended."""
        if self._channel.fileno() < 0:
            return
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown(socket.SHUT_WR)
            while True:
                receive(self._channel)
        self._channel.close()

    def _receive(self) -> Ended:
        try:
            message, _ = receive(self._channel)
        except (EOFError, ConnectionError):
            raise WorkerError(
                "The fork server has ended; see its output above. If the system killed it, there was not enough "
                "memory. Finished units are in the store; the next fit continues from there."
            ) from None
        assert isinstance(message, Ended)
        return message

    def _begin(self, load_in_unit: bool) -> Any:
        begin = BeginFit(
            self._package.header,
            self._package.on_device,
            load_in_unit,
            dict(os.environ),
            os.getcwd(),
            list(sys.path),
            list(sys.argv),
        )
        sys.stdout.flush()
        sys.stderr.flush()
        for attempt in (1, 2):  # the process may have just ended after a while without requests
            base = _warm_base()
            try:
                self._channel = base.begin(begin, self._package)
                answer, _ = receive(self._channel)
                return answer
            except (EOFError, ConnectionError):
                _forget_base()
                if attempt == 2:
                    raise WorkerError("The fork server ended before it was ready; see its output above.") from None
        raise AssertionError


def _forget_base() -> None:
    global _base
    _base = None
