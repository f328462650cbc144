"""Exported copies: files outside a store with a unit's weights, erased by every request that reaches the unit."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO

from lightning_s3t.core.events import Exported, Kind, Request
from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError, MovedError, RevokedError, StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.disk.files import spell, sync_folder, unlink_all
from lightning_s3t.store.history import record
from lightning_s3t.store.keys.authentication import layers_after
from lightning_s3t.store.ledgers.ledger import Export, ledger_errors
from lightning_s3t.store.registered_files import RegisteredFiles
from lightning_s3t.store.requests.erasure import erase_queued, remove_exports
from lightning_s3t.store.requests.journal import write_journal


def make_export_name(unit: UnitId) -> str:
    """Return a new name for an exported copy of a unit; a later one of the same unit has another.

    Args:
        unit: The unit.
    """
    return f"{unit}:{secrets.token_hex(8)}"


def write_export(store: Backend, name: str, unit: UnitId, digests: Sequence[str], files: Mapping[Path, bytes]) -> None:
    """Write an exported copy of a unit.

    Its files are registered before they have contents. They are written under other names, through open files that a
    request takes the names of; and they get their own in a transaction, which no request comes into. So a crash or a
    request at any point leaves no file that is not registered.

    Args:
        store: The store's backend.
        name: The result of `make_export_name`.
        unit: The unit.
        digests: Those of the snapshots of its lineage that the copy was made from.
        files: The contents to write, by path. Their folders must be there.

    Raises:
        ConfigurationError: A file already exists, or would be inside the store.
        RevokedError: A request has reached the unit; nothing is left of the copy.
        StoreError: A file could not be written; nothing is left of the copy.
    """
    final = {spell(path): data for path, data in files.items()}
    _check_paths(store.folder, final)
    # not a name that is_half_written recognises: such files are cleaned up
    begun = {path: f"{path}.{name.rpartition(':')[2]}.part" for path in final}
    ours: dict[str, tuple[int, int]] = {}
    try:
        with ExitStack() as stack:
            opened = _register(store, stack, Export(name, unit.cells, 0), unit, digests, begun)
            for path, file in opened.items():
                ours[path] = _identity(os.fstat(file.fileno()))
                file.write(final[path])
                file.flush()
                os.fsync(file.fileno())
        with store.ledger.transaction():
            export = next((export for export in store.ledger.exports() if export.name == name), None)
            if export is None:
                raise _revoked(unit)
            for path, part in begun.items():
                _name(part, path)
            known = RegisteredFiles(store.folder)
            written = {path: known.after(path, hashlib.sha256(data).hexdigest()) for path, data in final.items()}
            store.ledger.add_export(export, written)
            record(store, "export", None, asdict(Exported(name, export.cells, export.as_of)))
            for folder in {os.path.dirname(path) for path in final}:
                sync_folder(Path(folder))
    except BaseException as error:
        try:
            _take_back(store, Export(name, unit.cells, 0), begun, ours)
        except MovedError:  # the copy of the store does not finish this export
            unlink_all(begun.values())
        if isinstance(error, OSError):
            raise StoreError(f"The export could not be written ({error}). No part of it remains.") from error
        raise
    write_journal(store)


def check_exports(store: Backend) -> None:
    """Check that no exported copy was taken out of the ledger, or out of the reach of requests.

    Args:
        store: The store's backend.

    Raises:
        StoreError: One was.
    """
    ledger = store.ledger
    with ledger.at_one_time(), ledger_errors("An exported copy"):
        listed = [event.read(Exported) for event in store.authenticator.listing() if event.kind == "export"]
        if not listed:
            return
        made = {one.name: one for one in listed}.values()  # one that has moved with its shard is listed again
        newest, found = ledger.newest_requests(), {export.name: export for export in ledger.exports()}
        expected = [one for one in made if all(newest.get(cell, 0) <= one.as_of for cell in one.cells)]
        wrong = {one.name for one in expected if found.get(one.name) != Export(one.name, one.cells, one.as_of)}
        # of a restriction that was released, the tables no longer have the number
        wrong -= _reached(store, wrong - found.keys())
    if wrong:
        raise StoreError(
            f"{len(wrong)} exported copies of the store {store.folder} do not match its history: they were changed "
            "without the store's key, or the ledger is damaged. Nothing is served. Restore the ledger from a backup "
            "(missing requests are carried out again from the journal)."
        )


def _reached(store: Backend, names: set[str]) -> set[str]:
    """Return those of some exported copies that a request has reached, by the events of requests."""
    reached, layers = set[str](), 1
    kinds: tuple[Kind, ...] = ("request", "rotation")
    for event in store.ledger.events(kinds=kinds) if names else ():
        layers = layers_after(event, layers)
        named = names & set(event.read(Request).exports) if event.kind == "request" else set()
        if named and store.authenticator.is_unchanged(event, layers):
            reached |= named
        if len(reached) == len(names):
            break
    return reached


def _register(
    store: Backend, stack: ExitStack, export: Export, unit: UnitId, digests: Sequence[str], begun: Mapping[str, str]
) -> dict[str, IO[bytes]]:
    with store.ledger.transaction():
        lineage = [str(ancestor) for ancestor in unit.lineage]
        if store.ledger.digests(lineage) != dict(zip(lineage, digests, strict=True)):
            raise _revoked(unit)
        registered = Export(export.name, export.cells, store.ledger.watermark())
        known = RegisteredFiles(store.folder)
        store.ledger.add_export(registered, {path: known.before(path, False) for path in (*begun.values(), *begun)})
        return {path: stack.enter_context(open(part, "xb")) for path, part in begun.items()}


def _name(part: str, path: str) -> None:
    """Give a file its name, unless another file has taken it in the meantime."""
    try:
        os.link(part, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        os.replace(part, path)
    else:
        os.unlink(part)


def _take_back(store: Backend, export: Export, begun: Mapping[str, str], ours: Mapping[str, tuple[int, int]]) -> None:
    with store.ledger.transaction():
        if _is_whole(store, export):  # the error was raised after that
            return
        if any(known.name == export.name for known in store.ledger.exports()):
            # a file at its path is not erased with it, since it existed before
            others = [path for path in begun if os.path.lexists(path) and _identity(os.lstat(path)) != ours.get(path)]
            store.ledger.add_export(
                export, {path: RegisteredFiles(store.folder).before(path, False) for path in others}
            )
        remove_exports(store, [export.name], None)
    unlink_all(begun.values())
    erase_queued(store)


def _is_whole(store: Backend, export: Export) -> bool:
    kinds: tuple[Kind, ...] = ("export",)
    return any(event.read(Exported).name == export.name for event in store.ledger.events(kinds=kinds))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_paths(folder: Path, paths: Mapping[str, bytes]) -> None:
    own = os.path.realpath(folder)
    for path in paths:
        if os.path.lexists(path):
            raise ConfigurationError(f"{path} already exists. Expected a path for a new file. Nothing was written.")
        if os.path.commonpath([own, path]) == own:
            raise ConfigurationError(f"{path} is inside the store {folder}, which keeps only its own files.")


def _revoked(unit: UnitId) -> RevokedError:
    return RevokedError(
        f"Unit {unit} was revoked or trained again while it was exported, and nothing was written. Export again."
    )
