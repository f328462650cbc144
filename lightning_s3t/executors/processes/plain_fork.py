"""Units' processes forked from the script's own, for objects that cannot be sent to another process."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Collection, Iterable
from multiprocessing.connection import Connection
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_s3t.engine.lightning_internals import replace_parts
from lightning_s3t.engine.unit_training import UnitTraining
from lightning_s3t.executors.processes.process_settings import ProcessSettings
from lightning_s3t.executors.processes.server import Ended, kill_all, run_and_leave
from lightning_s3t.executors.processes.substitutes import substitutes
from lightning_s3t.executors.processes.unit_process import train_unit


class PlainFork:
    """Forks units' processes from this one: everything is as the fit has found it, locks and open files too.

    OpenMP's threads do not survive a fork, so units are trained on one thread; nor does a device's context, so there
    can be none.

    Args:
        trainer: The trainer.
        training: Trains a unit.
        settings: torch's settings of this process.

    Attributes:
        shares_memory: Always.
        sources: File descriptors that are readable when a process has ended.
    """

    shares_memory = True

    def __init__(self, trainer: pl.Trainer, training: UnitTraining, settings: ProcessSettings) -> None:
        training.prepare()
        self._trainer = trainer
        self._training = training
        self._settings = dataclasses.replace(settings, calls={**settings.calls, "threads": 1})
        self._substitutes = substitutes(trainer)
        self._running: dict[int, tuple[int, int]] = {}  # by pidfd: pid and number
        self.sources: Collection[Any] = self._running.keys()

    def fork(self, number: int, descriptor: int) -> None:
        """Forks a process for a unit.

        Args:
            number: Its number.
            descriptor: Its end of the channel between it and this one.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            run_and_leave(self._train, os.dup(descriptor))
        self._running[os.pidfd_open(pid)] = (pid, number)

    def learn(self, modules: tuple[str, ...]) -> None:
        """Do nothing: the script's process is not changed.

        Args:
            modules: The modules that units import.
        """

    def kill(self, number: int) -> Collection[Ended]:
        """End a unit's process, and wait for its end.

        Args:
            number: The process.

        Returns:
            Nothing: each of the other processes has its own source.
        """
        for source, (pid, other) in list(self._running.items()):
            if other == number:
                kill_all([pid])
                self.ended(source)
        return ()

    def ended(self, source: Any) -> Iterable[Ended]:
        """Returns which process has ended.

        Args:
            source: One of `sources`.
        """
        pid, number = self._running.pop(source)
        os.close(source)
        _, status = os.waitpid(pid, 0)
        return [Ended(number, os.waitstatus_to_exitcode(status))]

    def close(self) -> None:
        """Ends all processes; when this returns, they have ended."""
        for _, number in list(self._running.values()):
            self.kill(number)

    def _train(self, descriptor: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the script's to answer
        torch.set_num_threads(1)
        replace_parts(self._trainer, self._substitutes)
        train_unit((self._trainer, self._training, self._settings), Connection(descriptor))
