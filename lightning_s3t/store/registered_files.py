"""Registered files: files other than snapshots, and how a store recognises that a file is still the registered one."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from lightning_s3t.core.documents import canonical
from lightning_s3t.store.disk.files import sha256_of, size_of, spell
from lightning_s3t.store.keys.identities import read_keys
from lightning_s3t.store.ledgers.address import has_ledger
from lightning_s3t.store.ledgers.ledger import OwnedFile

State = Literal["found", "missing", "unwritten", "changed", "elsewhere", "unproven"]


@dataclass(frozen=True)
class Evidence:
    """Evidence that distinguishes a registered file from others with the same name.

    Attributes:
        store: The store's location when the file was registered.
        inode: The number of its folder there, which a copy does not have.
        sha256: The digest of the file when its unit was committed; None before, and empty if it was not there then.
        size: Its bytes then.
        modified: The time of its last write, in nanoseconds, which its contents do not reveal.
        before: A file of another program under its name before it was registered; None if there was none.
    """

    store: str
    inode: int
    sha256: str | None = None
    size: int | None = None
    modified: int | None = None
    before: str | None = None


@dataclass(frozen=True)
class Located:
    """The location of a registered file.

    Attributes:
        state: "found"; "missing"; "unwritten", which is not a missing file; "changed" to a file that is not registered;
            "elsewhere", at the store's location before it was moved or copied; "unproven", because the store was moved
            or copied, and the file's contents or time were not recorded or are different.
        path: Its path, if found.
        stamp: That of the file that was found.
        size: Its bytes.
    """

    state: State
    path: str = ""
    stamp: str | None = None
    size: int | None = None

    @property
    def is_left(self) -> bool:
        """Whether a file exists that may be this one, or another program's."""
        return self.state in ("changed", "elsewhere", "unproven")

    @property
    def is_unchanged(self) -> bool:
        """Whether the found file, if any, is unchanged."""
        return not self.path or _stamp(self.path) == self.stamp


class RegisteredFiles:
    """Gives a store evidence for the files that it registers, and finds them by it.

    The evidence is bound to the path by the store's key. Someone who hands over a store has that key too, and can write
    any path into it, with the digest of a file that every machine has. So a file is found only if this user's own store
    has registered it from this very folder; or if its digest, size and time of writing are those recorded.

    Args:
        folder: The store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, path: str, is_ours: bool) -> str:
        """Return the evidence for a file that is about to be written.

        Args:
            path: The file.
            is_ours: Whether an existing file at the path belongs to the store.
        """
        return self._seal(path, Evidence(*self._place(), before=None if is_ours else _stamp(path)))

    def after(self, path: str, sha256: str) -> str:
        """Return the evidence for a file once its unit is trained.

        Args:
            path: The file.
            sha256: The result of `digest_of`; empty if the file does not exist.
        """
        return self._seal(path, Evidence(*self._place(), sha256, size_of(path), _modified(path)))

    def locate(self, file: OwnedFile, read: bool = False) -> Located:
        """Find a file, wherever it and the store were moved to together.

        Args:
            file: The file in the ledger.
            read: Read it even where this very store has registered it, and it has not been written to since: a request
                must not take as long as it takes to read all checkpoints that it erases.
        """
        evidence, (place, inode) = self._read(file), self._place()
        is_the_folder = evidence.inode == inode and self._folder.stat().st_uid == os.geteuid()
        if is_the_folder and evidence.store == place:
            return _locate_at_home(file.path, evidence, read)
        if not evidence.sha256:
            return Located("unproven" if _stamp(file.path) is not None else "unwritten")
        # in the very place it was restored from a backup
        moved = file.path if evidence.store == place else _moved_along(file.path, evidence.store, place)
        if moved is not None and _looks_like(moved, evidence):
            return _found(moved) if digest_of(moved) == evidence.sha256 else Located("unproven")
        was_renamed = is_the_folder and not has_ledger(Path(evidence.store))
        if was_renamed and digest_of(file.path) == evidence.sha256:
            return _found(file.path)
        if _looks_like(file.path, evidence):
            return Located("elsewhere")
        return Located("unproven" if moved is not None and size_of(moved) == evidence.size else "missing")

    def adopt(self, file: OwnedFile, source: RegisteredFiles) -> OwnedFile:
        """Return a file of a store that this one takes the place of, as this one registers it.

        A file that cannot be proven to be the other store's is not this one's either.

        Args:
            file: The file in the other store's ledger. Both have one key.
            source: The files of the other store.
        """
        found = source.locate(file)
        if found.state in ("elsewhere", "unproven"):
            return file
        store, inode = self._place()
        path = found.path or file.path
        return OwnedFile(path, self._seal(path, replace(self._read(file), store=store, inode=inode)))

    def _place(self) -> tuple[str, int]:
        return os.path.realpath(self._folder), self._folder.stat().st_ino

    def _seal(self, path: str, evidence: Evidence) -> str:
        return json.dumps([asdict(evidence), self._mac(path, evidence)])

    def _read(self, file: OwnedFile) -> Evidence:
        try:
            fields, mac = json.loads(file.evidence)
            found = Evidence(**fields)
            if hmac.compare_digest(mac, self._mac(file.path, found)):
                return found
        except (ValueError, TypeError, RecursionError):
            pass
        return Evidence("/", -1)  # proves nothing

    def _mac(self, path: str, evidence: Evidence) -> str:
        # by the first key, which a rotation does not change
        text = canonical([os.fsencode(path).hex(), asdict(evidence)])
        return hmac.digest(read_keys(self._folder)[0], b"file\0" + text.encode(), hashlib.sha256).hex()


def ambiguous(paths: Iterable[str]) -> set[str]:
    """Return the paths that should not decide over a file, since other spellings of it are among them.

    A store registers a file under one spelling. An attacker who guesses where and in which folder a store will be
    unpacked could make a guess for each of many.

    Args:
        paths: Paths as a ledger has them.
    """
    by_file: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        try:
            found = os.lstat(path)
        except (OSError, ValueError):
            continue
        by_file.setdefault((found.st_dev, found.st_ino), []).append(path)
    doubtful = set[str]()
    for names in by_file.values():
        if len(names) > 1:  # or hard links, which have different names
            plain = {name: _fold(name) for name in names if spell(name) == name}
            counts = Counter(plain.values())
            doubtful.update(name for name in names if counts[plain.get(name, "")] != 1)
    return doubtful


def _fold(name: str) -> str:  # file systems may take these for one
    return unicodedata.normalize("NFKC", name).casefold()


def digest_of(path: str) -> str | None:
    """Return the SHA-256 of a file, or of a link's target path; None if neither exists.

    Args:
        path: The file.
    """
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return hashlib.sha256(b"link to " + os.fsencode(os.readlink(path))).hexdigest()
        return sha256_of(Path(path)) if stat.S_ISREG(mode) else None
    except (OSError, ValueError):  # it cannot be read, so nothing shows that it is the one
        return None


def _locate_at_home(path: str, evidence: Evidence, read: bool) -> Located:
    stamp = _stamp(path)
    if stamp is None:
        return Located("missing" if evidence.sha256 else "unwritten")
    if evidence.sha256 is None and stamp == evidence.before:  # a crash came before it was written
        return Located("unwritten")
    if size_of(path) is None:  # a folder, which is not erased
        return Located("changed")
    is_known = evidence.sha256 is None or (not read and _looks_like(path, evidence))
    return _found(path) if is_known or digest_of(path) == evidence.sha256 else Located("changed")


def _found(path: str) -> Located:
    return Located("found", path, _stamp(path), size_of(path))


def _moved_along(path: str, before: str, now: str) -> str | None:
    """Return a file's path if it was moved with the store's parent folder; None if it was not in that folder."""
    moved = os.path.normpath(os.path.join(now, os.path.relpath(path, before)))
    around = os.path.dirname(now)
    # under its old name it is the other store's, which this one is a copy of
    inside = os.path.commonpath([around, os.path.realpath(os.path.dirname(moved))]) == around
    return moved if inside and moved != path else None


def _looks_like(path: str, evidence: Evidence) -> bool:
    # other files are not read: a stranger may have named any file, of any size
    return size_of(path) == evidence.size and _modified(path) == evidence.modified


def _stamp(path: str) -> str | None:
    """Return a stamp that changes when a file is replaced or written to; None without a file."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _modified(path: str) -> int | None:
    try:
        return os.lstat(path).st_mtime_ns
    except (OSError, ValueError):
        return None
