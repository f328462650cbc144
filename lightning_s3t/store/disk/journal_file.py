"""Reading the journal's file: its newest event, and its lines."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_s3t.core.events import Event
from lightning_s3t.errors import StoreError
from lightning_s3t.store.disk.files import read_unlinked

FILE = "journal.jsonl"
_BLOCK = 65_536


def newest_event(folder: Path) -> Event | None:
    """Return the newest event of a journal; None if it is empty or missing.

    Args:
        folder: The store.

    Raises:
        StoreError: It is damaged at its end.
    """
    try:
        with read_unlinked(folder / FILE) as file:
            return last_event(folder, file.fileno())[0]
    except FileNotFoundError:
        return None


def last_event(folder: Path, descriptor: int) -> tuple[Event | None, int]:
    """Return the event of the last complete line, or None, and where the line ends.

    Args:
        folder: The store.
        descriptor: The journal, open.

    Raises:
        StoreError: The line is not an event.
    """
    size = os.fstat(descriptor).st_size
    tail, start = b"", size
    while start > 0 and tail.count(b"\n") < 2:
        step = min(max(_BLOCK, len(tail)), start)  # doubles: a line of many tombstones is long
        start -= step
        tail = os.pread(descriptor, step, start) + tail
    end = tail.rfind(b"\n")
    if end < 0:
        return None, 0
    return parse_line(folder / FILE, tail[tail.rfind(b"\n", 0, end) + 1 : end], "at its end"), start + end + 1


def parse_line(journal: Path, line: bytes, where: str) -> Event:
    """Return the event of a line.

    Args:
        journal: The file, for the message.
        line: The line.
        where: The position, for the message.

    Raises:
        StoreError: It is not an event.
    """
    try:
        return Event.from_json(line)
    except StoreError as error:
        raise StoreError(f"The journal {journal} is damaged {where}: {error}") from error
