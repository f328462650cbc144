"""Logs of a unit that another process trains: recorded there, written by the main process when the unit is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger


@dataclass(frozen=True)
class LoggerCall:
    """A call of a logger's method.

    Attributes:
        logger: The logger's position among the trainer's.
        on_experiment: Whether it was a method of `logger.experiment`.
        method: Its name.
        arguments: Positional ones.
        keywords: The keyword arguments.
        step: The step on the axis that continues over all units, counted from the unit's start; None if the call gives
            its own step, or none.
    """

    logger: int
    on_experiment: bool
    method: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    step: int | None = None


class RecordingLogger(Logger):
    """Stands in for one of the script's loggers in a process that trains units.

    Args:
        position: The logger's position among the trainer's.
        original: The logger.
    """

    def __init__(self, position: int, original: Logger) -> None:
        super().__init__()
        self._position = position
        self._name, self._version = original.name, original.version
        self._folders = (original.save_dir, original.root_dir, original.log_dir)
        self._methods = _methods_of(type(original))
        self._experiment_methods: frozenset[str] = frozenset()
        self._calls: list[LoggerCall] = []
        self.axis: Callable[[], int] | None = None

    def look_at_experiment(self, original: Logger) -> None:
        """Find the methods of the experiment, which is created if necessary.

        Args:
            original: The logger.
        """
        experiment = getattr(original, "experiment", None)
        self._experiment_methods = _methods_of(experiment) if experiment is not None else frozenset()

    @property
    def name(self) -> str | None:
        """The logger's own."""
        return self._name

    @property
    def version(self) -> int | str | None:
        """The logger's own."""
        return self._version

    @property
    def save_dir(self) -> str | None:
        """The logger's own."""
        return self._folders[0]

    @property
    def root_dir(self) -> str | None:
        """The logger's own."""
        return self._folders[1]

    @property
    def log_dir(self) -> str | None:
        """The logger's own."""
        return self._folders[2]

    @property
    def experiment(self) -> RecordedExperiment:
        """A proxy that records calls."""
        return RecordedExperiment(self.record, self._experiment_methods)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Records metrics.

        Args:
            metrics: The metrics.
            step: The step.
        """
        on_axis = step is not None and self.axis is not None and step == self.axis()
        self.record(False, "log_metrics", (dict(metrics),), {"step": step}, step if on_axis else None)

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        """Records hyperparameters.

        Args:
            arguments: The logger's own.
            keywords: The logger's own.
        """
        self.record(False, "log_hyperparams", arguments, keywords)

    def record(
        self,
        on_experiment: bool,
        method: str,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        step: int | None = None,
    ) -> None:
        """Records a call.

        Args:
            on_experiment: Whether it is a method of `logger.experiment`.
            method: Its name.
            arguments: Positional ones.
            keywords: The keyword arguments.
            step: The step on the common axis.
        """
        self._calls.append(LoggerCall(self._position, on_experiment, method, arguments, keywords, step))

    def take(self) -> list[LoggerCall]:
        """Return the calls recorded since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(name)
        return lambda *arguments, **keywords: self.record(False, name, arguments, keywords)


class RecordedExperiment:
    """Stands in for `logger.experiment`: calls are recorded, and return None.

    Args:
        record: Takes each call.
        methods: The names of those that there are.
    """

    def __init__(
        self, record: Callable[[bool, str, tuple[Any, ...], dict[str, Any]], None], methods: frozenset[str]
    ) -> None:
        self._record = record
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(name)
        return lambda *arguments, **keywords: self._record(True, name, arguments, keywords)


def _methods_of(found: object) -> frozenset[str]:
    names = (name for name in dir(found) if not name.startswith("_"))
    return frozenset(name for name in names if callable(getattr(found, name, None)))


def write_calls(calls: Iterable[LoggerCall], loggers: Sequence[Logger], first_step: int) -> None:
    """Makes recorded calls on the script's own loggers.

    Args:
        calls: The recorded calls of one unit.
        loggers: The trainer's.
        first_step: The position of the loggers' step axis.
    """
    written = set()
    for call in calls:
        logger = loggers[call.logger]
        target = logger.experiment if call.on_experiment else logger  # type: ignore[attr-defined]
        keywords = dict(call.keywords)
        if call.step is not None:
            keywords["step"] = first_step + call.step
        getattr(target, call.method)(*call.arguments, **keywords)
        written.add(call.logger)
    for position in written:
        loggers[position].save()
