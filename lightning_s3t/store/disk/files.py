"""Files that survive a crash, and files that must not."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

# errors that mean the file does not exist: it or its folder is missing, a file has replaced the folder, the name is
# invalid
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
_HALF_WRITTEN = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")


def write_atomically(path: Path, data: bytes | Callable[[int], bytes]) -> None:
    """Write a file so that, after a crash at any point, it exists completely or not at all.

    Args:
        path: The file.
        data: The contents, or a function that returns them for the file's inode.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # an older one would keep its own permissions
    with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data if isinstance(data, bytes) else data(os.fstat(file.fileno()).st_ino))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def half_written_name(path: Path) -> str | None:
    """Return the target name of a temporary file of `write_atomically`; None for other files.

    Args:
        path: The file.

    Example:
        >>> half_written_name(Path("store/.subject.key.4711.tmp")), half_written_name(Path("store/.notes.tmp"))
        ('subject.key', None)
    """
    found = _HALF_WRITTEN.fullmatch(path.name)
    return found["name"] if found else None


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable.

    Args:
        folder: The folder; nothing happens if it does not exist.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno in _ABSENT:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def spell(path: str | Path) -> str:
    """Return the one spelling of a file's path, by which a ledger knows it.

    A link stays one, since erasing must not follow it.

    Args:
        path: The file; its folder may be reached through links.
    """
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def unlink_all(paths: Iterable[str | Path]) -> dict[str, OSError]:
    """Remove files and make that durable. Folders are never removed, and missing files are skipped.

    Args:
        paths: The files.

    Returns:
        The files that still exist, with the reason.
    """
    folders, failed = set(), dict[str, OSError]()
    for path in [os.fspath(path) for path in paths]:
        try:
            os.unlink(path)
        except ValueError:  # a null character: no file can have this name
            continue
        except OSError as error:
            if error.errno not in _ABSENT and not (os.path.isdir(path) and not os.path.islink(path)):
                failed[path] = error
        # also for missing files: a crash may have occurred between the removal and this
        folders.add(os.path.dirname(path))
    for folder in folders:
        sync_folder(Path(folder))
    return failed


def size_of(path: str | Path) -> int | None:
    """Return a file's size; None if it does not exist or is a folder.

    Args:
        path: The file.
    """
    try:
        found = os.lstat(path)
    except ValueError:  # a null character: no file can have this name
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    return None if stat.S_ISDIR(found.st_mode) else found.st_size


def sizes_of(paths: Iterable[str]) -> dict[str, int | None]:
    """Return the sizes of files; None of one that is not there, is a folder, or cannot be looked at now.

    Args:
        paths: The files.
    """
    found: dict[str, int | None] = {}
    for path in paths:
        try:
            found[path] = size_of(path)
        except OSError:
            found[path] = None
    return found


def read_unlinked(path: Path) -> IO[bytes]:
    """Open a file to read, unless it is a link.

    Args:
        path: The file.

    Raises:
        OSError: It is a link (ELOOP), or cannot be opened.
    """
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def open_own(path: str | Path, flags: int, mode: int = 0o600) -> int:
    """Open a file of a store for writing, unless it was replaced; an `opener`.

    Args:
        path: The file.
        flags: As for `os.open`.
        mode: The permissions of a new one.

    Returns:
        Its descriptor.

    Raises:
        OSError: It is a link (ELOOP), no plain file, has another name elsewhere, or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "it is not a file of the store's own", os.fspath(path))
    return descriptor


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256; a link is not followed.

    Args:
        path: The file.
    """
    with read_unlinked(path) as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file.read())
        )


def _slow(data: bytes) -> str:  # Python 3.10 has no file_digest
    return hashlib.sha256(data).hexdigest()
