"""The marker of a folder that only one store uses: a file that names the store."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_s3t.store.disk.files import half_written_name, read_unlinked, unlink_all, write_atomically

MARKER = "store.json"
_LARGEST = 1 << 16  # bytes: more is not a marker


def is_free(folder: Path) -> bool:
    """Return whether a folder is empty, except for the marker of a process that was killed while it wrote it.

    Args:
        folder: The folder.
    """
    return all(half_written_name(entry) == MARKER for entry in folder.iterdir())


def claim(folder: Path, owner: str) -> None:
    """Make a folder a store's own.

    Args:
        folder: The folder.
        owner: The token that identifies the store.
    """
    unlink_all([entry for entry in folder.iterdir() if half_written_name(entry) == MARKER])
    write_atomically(folder / MARKER, json.dumps({"store": owner}).encode())


def read_owner(folder: Path) -> str | None:
    """Return the token of the store that a folder belongs to; None if the marker has none.

    Args:
        folder: The folder.

    Raises:
        OSError: The marker is missing, or cannot be read.
        ValueError: It is not JSON.
    """
    with read_unlinked(folder / MARKER) as file:
        found = json.loads(file.read(_LARGEST))
    owner = found.get("store") if isinstance(found, dict) else None
    return owner if isinstance(owner, str) else None
