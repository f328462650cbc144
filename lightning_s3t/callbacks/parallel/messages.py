"""What the scheduler and the processes that train units tell each other."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

from lightning_s3t.callbacks.parallel.recorded_logs import LoggerCall
from lightning_s3t.callbacks.unit_plan import Digests, FitPlan, PlannedUnit
from lightning_s3t.errors import WorkerError
from lightning_s3t.plan import UnitId


@dataclass(frozen=True)
class Replanned:
    """To a worker: a deletion request came in, so there is another plan."""

    plan: FitPlan
    forgotten: frozenset[str]
    digests: Digests


@dataclass(frozen=True)
class Build:
    """To a worker: train this unit."""

    planned: PlannedUnit


@dataclass(frozen=True)
class Finish:
    """To a worker: there is nothing left to do."""


@dataclass(frozen=True)
class Ready:
    """From a worker: it has all that it needs to train units."""


@dataclass(frozen=True)
class Advanced:
    """From a worker: how far its unit is, from 0 to 1."""

    unit: UnitId
    share: float


@dataclass(frozen=True)
class Warned:
    """From a worker: a warning, to be shown once for all of them."""

    text: str
    category: type[Warning]
    filename: str
    line: int


@dataclass(frozen=True)
class Ended:
    """From a worker: its unit is in the store, or was revoked.

    Attributes:
        unit: The unit.
        revoked: Why it is not in the store; None if it is.
        calls: What it told the loggers.
        steps: How far it has moved their step axis.
    """

    unit: UnitId
    revoked: str | None
    calls: tuple[LoggerCall, ...]
    steps: int


@dataclass(frozen=True)
class Failed:
    """From a worker: an error, which ends the fit.

    Attributes:
        unit: The unit that was trained; None before the first.
        pickled: The exception, or None if it cannot be pickled.
        text: Its type and message.
        trace: Where it happened.
    """

    unit: UnitId | None
    pickled: bytes | None
    text: str
    trace: str

    @classmethod
    def of(cls, unit: UnitId | None, error: BaseException) -> Failed:
        """Describes an error.

        Args:
            unit: The unit that was trained.
            error: What was raised.
        """
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # many exceptions can be pickled, but not be made again
        except Exception:
            return cls(unit, None, f"{type(error).__name__}: {error}", _trace(error))
        return cls(unit, pickled, f"{type(error).__name__}: {error}", _trace(error))

    def exception(self) -> BaseException:
        """Returns the error as it was raised, caused by one that names the unit and the place in the code."""
        where = f"unit {self.unit}" if self.unit is not None else "the first unit (a process was being prepared)"
        error: Any = None
        if self.pickled is not None:
            try:
                error = pickle.loads(self.pickled)
            except Exception:
                error = None
        if not isinstance(error, BaseException):
            error = WorkerError(f"While {where} was trained in a process of its own: {self.text}")
        error.__cause__ = WorkerError(f"While {where} was trained in a process of its own:\n{self.trace}")
        return error


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


FromWorker = Ready | Advanced | Warned | Ended | Failed
ToWorker = Replanned | Build | Finish
