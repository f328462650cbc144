"""The processes that train units, seen from the scheduler: started, listened to, and ended with all their children."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.multiprocessing

from lightning_s3t.callbacks.parallel.messages import Build, Finish, FromWorker, Ready, ToWorker
from lightning_s3t.callbacks.parallel.package import Package
from lightning_s3t.callbacks.parallel.process_settings import ProcessSettings
from lightning_s3t.callbacks.parallel.worker import work
from lightning_s3t.callbacks.unit_plan import PlannedUnit
from lightning_s3t.errors import WorkerError
from lightning_s3t.plan import UnitId

_PATIENCE = 30.0  # seconds to end in, once asked


class Workers:
    """Processes that train units. Leaving the block ends them: kindly after `finish`, at once otherwise.

    Args:
        package: What each is given.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._settings = ProcessSettings.capture()
        self._hands: list[Hand] = []

    def start(self, count: int) -> list[Hand]:
        """Starts processes until there are so many.

        Args:
            count: How many there shall be.

        Returns:
            Those that are new.
        """
        before = len(self._hands)
        # forked processes would hang in OpenMP, and cannot use CUDA
        context = torch.multiprocessing.get_context("spawn")
        while len(self._hands) < count:
            number = len(self._hands)
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(self._package, self._settings, number, theirs), name=f"s3t-worker-{number}"
            )
            with _without_interrupts():
                process.start()
                theirs.close()
                self._hands.append(Hand(process, ours))
        return self._hands[before:]

    def idle(self) -> list[Hand]:
        """Returns those that could train a unit now."""
        return [hand for hand in self._hands if hand.ready and hand.unit is None]

    def send_all(self, message: ToWorker) -> None:
        """Tells all something.

        Args:
            message: What.
        """
        for hand in self._hands:
            hand.send(message)

    def listen(self, timeout: float) -> Iterator[tuple[Hand, FromWorker]]:
        """Waits until a process says something.

        Args:
            timeout: For how long at most.

        Raises:
            WorkerError: A process has died.
        """
        by_source: dict[Any, Hand] = {}
        for hand in self._hands:
            by_source[hand.connection] = by_source[hand.process.sentinel] = hand
        for hand in dict.fromkeys(by_source[source] for source in wait(list(by_source), timeout)):
            while hand.connection.poll():
                try:
                    message: FromWorker = pickle.loads(hand.connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    hand.process.join()
                    raise hand.death() from None
                hand.ready = hand.ready or isinstance(message, Ready)
                yield hand, message
            if not hand.process.is_alive() and not hand.connection.poll():
                raise hand.death()

    def finish(self) -> None:
        """Lets all processes end."""
        for hand in self._hands:
            with contextlib.suppress(OSError):
                hand.send(Finish())
        for hand in self._hands:
            hand.process.join(_PATIENCE)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for hand in self._hands:
            hand.kill()
        for hand in self._hands:
            hand.process.join()
            hand.connection.close()


class Hand:
    """One process.

    Args:
        process: The process.
        connection: To it.

    Attributes:
        unit: The unit that it trains, or None.
        ready: Whether it has all that it needs.
    """

    def __init__(self, process: Any, connection: Connection) -> None:
        self.process = process
        self.connection = connection
        self.unit: UnitId | None = None
        self.ready = False

    def build(self, planned: PlannedUnit) -> None:
        """Gives it a unit to train.

        Args:
            planned: The unit.
        """
        self.unit = planned.unit
        self.send(Build(planned))

    def send(self, message: ToWorker) -> None:
        """Tells it something.

        Args:
            message: What.
        """
        # one that has died is noticed where it is listened to, with its exit code
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(pickle.dumps(message))

    def kill(self) -> None:
        """Ends it at once, with the data loaders that it has started."""
        # the store is safe whenever a process dies
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()

    def death(self) -> WorkerError:
        """Says how it died."""
        self.process.join()
        code = self.process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"killed by signal {-code}, {signal.Signals(-code).name}"
        if not self.ready:
            return WorkerError(
                f"A process that should train units ended before its first ({how}); what it printed stands above. "
                "Each imports the script anew: what the script does belongs below `if __name__ == '__main__':`. Or "
                "train one unit at a time: S3T(parallel_units=1)."
            )
        doing = f"that trained unit {self.unit}" if self.unit is not None else "that waited for a unit"
        return WorkerError(
            f"The process {doing} died ({how}). If the system has killed it, the memory was too small for all units "
            "at the same time: use a smaller S3T(parallel_units=...). What was done is in the store; the next fit "
            "goes on from there."
        )


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Lets processes that are started in the block never see Ctrl-C; here it comes when the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
