"""A child process that is killed at a chosen step: SIGKILL before its n-th change to the disk."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import psycopg
import s3fs

_CHANGES = (
    *("BEGIN", "COMMIT", "INSERT", "UPDATE", "DELETE", "CREATE", "VACUUM"),
    *("PRAGMA WAL_CHECKPOINT", "PRAGMA JOURNAL_MODE"),
)


def acknowledged_until_killed(work: Callable[[], Iterator[str]], fatal: int | None) -> tuple[list[str], bool]:
    """Run a generator in a forked child, and kill the child before its `fatal`-th change to the disk.

    Args:
        work: What to do. Each line that it yields is an acknowledgement: it is sent at once.
        fatal: Counted from 1; None for never.

    Returns:
        The lines that came through, and whether the child lived to its end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w", buffering=1) as output:
                stop = _count_changes(fatal)
                _send(work, output)
                stop()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as acknowledgements:
        lines = acknowledgements.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child failed by itself: {status}"
    return lines, status == 0


def _send(work: Callable[[], Iterator[str]], output: TextIO) -> None:
    for line in work():
        print(line, file=output, flush=True)


def _count_changes(fatal: int | None) -> Callable[[], None]:
    """Count from now on; return a function that ends it, since coverage writes thousands of rows at the child's end."""
    count, counting = 0, True

    def change() -> None:
        nonlocal count
        count += counting
        if counting and count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def stop() -> None:
        nonlocal counting
        counting = False

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            change()
            return function(*args, **kwargs)

        return wrapper

    def statement(text: str) -> None:
        if text.lstrip().upper().startswith(_CHANGES):
            change()

    connect = sqlite3.connect

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(statement)
        return connection

    for name in ("unlink", "link", "replace", "fsync", "mkdir", "open", "write", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    sqlite3.connect = traced  # type: ignore[assignment]

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(cursor: psycopg.Cursor[Any], query: bytes | str, *args: Any, **kwargs: Any) -> Any:
            statement(query.decode() if isinstance(query, bytes) else query)
            return function(cursor, query, *args, **kwargs)

        return wrapper

    sent = s3fs.core._error_wrapper

    async def counted_call(method: Any, **kwargs: Any) -> Any:
        change()
        return await sent(method, **kwargs)

    s3fs.core._error_wrapper = counted_call

    for name in ("execute", "executemany"):
        setattr(psycopg.Cursor, name, told(getattr(psycopg.Cursor, name)))

    return stop
