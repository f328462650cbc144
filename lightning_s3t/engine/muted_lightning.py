"""Muting Lightning between units: its messages about a fit appear once, not once per unit."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl

from lightning_s3t.plan import UnitId

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class _Once:
    """Shows a warning once, whatever the numbers in it: Lightning's would otherwise come with every unit."""

    def __init__(self, show: Callable[..., None]) -> None:
        self._show = show
        self._shown: set[tuple[Any, ...]] = set()

    def __call__(self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        key = (category, filename, lineno, re.sub(r"\d+", "", str(message)))
        if key not in self._shown:
            self._shown.add(key)
            self._show(message, category, filename, lineno, *more)


@contextmanager
def warned_once() -> Iterator[None]:
    """Shows each warning once, whatever the numbers in it."""
    with warnings.catch_warnings():
        warnings.showwarning = _Once(warnings.showwarning)  # type: ignore[assignment]
        yield


@contextmanager
def expecting_checkpoints() -> Iterator[None]:
    """Suppress ModelCheckpoint's warning about a non-empty folder: files of earlier units belong there."""
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    added = filters[0]
    try:
        yield
    finally:  # not `catch_warnings`, which would also discard filters that the script sets inside the block
        if added in filters:
            filters.remove(added)


@contextmanager
def quiet(trainer: pl.Trainer) -> Iterator[None]:
    """Silence Lightning's per-unit messages: its bars, its stop messages, its notes on eval modes.

    Args:
        trainer: The trainer.
    """
    bar = trainer.progress_bar_callback
    if bar is not None:
        bar.disable()
    # once the other package is imported too, Lightning speaks through either
    loggers = [logging.getLogger(f"{package}.utilities.rank_zero") for package in _PACKAGES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warned_once():
            # frozen statistics are in eval mode on purpose, and the guard watches them
            warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bar is not None:
            bar.enable()


def name_unit_in_logs(unit: UnitId) -> None:
    """Prefix Lightning's log records in this process with the unit, for example those of a verbose EarlyStopping.

    Args:
        unit: The unit that is trained.
    """
    make = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name.startswith(_PACKAGES):
            record.msg = f"Unit {unit}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
