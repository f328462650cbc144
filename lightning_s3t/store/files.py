"""Files that survive a crash, and files that must not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that, after a crash at any point, it is there whole or not at all.

    Args:
        path: Where to.
        data: What.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a folder's entries durable.

    Args:
        folder: The folder; nothing happens if it is gone.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unlink_all(paths: Iterable[Path]) -> None:
    """Removes files and makes that durable. Folders are never removed; what is gone already is passed over.

    Args:
        paths: The files.
    """
    folders = set()
    for path in paths:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            folders.add(path.parent)
    for folder in folders:
        sync_folder(folder)


def size_of(path: Path) -> int | None:
    """Returns a file's size; None if there is none, or if it is a folder.

    Args:
        path: The file.
    """
    try:
        return None if path.is_dir() and not path.is_symlink() else path.lstat().st_size
    except FileNotFoundError:
        return None


def sha256_of(path: Path) -> str:
    """Returns a file's SHA-256.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file.read())
        )


def _slow(data: bytes) -> str:  # Python 3.10 has no file_digest
    return hashlib.sha256(data).hexdigest()
