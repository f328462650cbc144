"""Exported copies: files outside of a store with what a unit has learnt, erased by every request that reaches it."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError, RevokedError, StoreError
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.erasure import erase_queued, remove_exports
from lightning_s3t.store.files import spell, sync_folder, unlink_all
from lightning_s3t.store.ledger import Export
from lightning_s3t.store.registered_files import RegisteredFiles


def make_export_name(unit: UnitId) -> str:
    """Return a new name for an exported copy of a unit; a later one of the same unit has another.

    Args:
        unit: The unit.
    """
    return f"{unit}:{secrets.token_hex(8)}"


def write_export(store: Backend, name: str, unit: UnitId, digests: Sequence[str], files: Mapping[Path, bytes]) -> None:
    """Write an exported copy of a unit.

    Its files are registered before there is anything in them. They are written under other names, through open files
    that a request takes the names of; and they get their own in a transaction, which no request comes into. So a crash
    or a request at any point leaves no file that is not registered.

    Args:
        store: Where the store lies.
        name: What `make_export_name` gave.
        unit: The unit.
        digests: Those of the snapshots of its lineage that the copy was made from.
        files: What to write, by path. Their folders must be there.

    Raises:
        ConfigurationError: A file is there already, or would lie in the store.
        RevokedError: A request has reached the unit; nothing is left of the copy.
        StoreError: A file could not be written; nothing is left of the copy.
    """
    final = {spell(path): data for path, data in files.items()}
    _check_paths(store.folder, final)
    # not the name that is_half_written knows: others clear those away
    begun = {path: f"{path}.{name.rpartition(':')[2]}.part" for path in final}
    try:
        with ExitStack() as stack:
            opened = _register(store, stack, Export(name, unit.cells, 0), unit, digests, begun)
            for path, file in opened.items():
                file.write(final[path])
                file.flush()
                os.fsync(file.fileno())
        with store.ledger.transaction():
            export = next((export for export in store.ledger.exports() if export.name == name), None)
            if export is None:
                raise _revoked(unit)
            for path, part in begun.items():
                os.replace(part, path)
            known = RegisteredFiles(store.folder)
            written = {path: known.after(path, hashlib.sha256(data).hexdigest()) for path, data in final.items()}
            store.ledger.add_export(export, written)
            for folder in {os.path.dirname(path) for path in final}:
                sync_folder(Path(folder))
    except BaseException as error:
        _take_back(store, name, begun.values())
        if isinstance(error, OSError):
            raise StoreError(f"The export could not be written ({error}). Nothing is left of it.") from error
        raise


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


def _take_back(store: Backend, name: str, parts: Iterable[str]) -> None:
    with store.ledger.transaction():
        remove_exports(store, [name], None)
    unlink_all(parts)
    erase_queued(store)


def _check_paths(folder: Path, paths: Mapping[str, bytes]) -> None:
    own = os.path.realpath(folder)
    for path in paths:
        if os.path.lexists(path):
            raise ConfigurationError(f"{path} is there already. Expected a path for a new file; nothing was written.")
        if os.path.commonpath([own, path]) == own:
            raise ConfigurationError(f"{path} lies in the store {folder}, which keeps its own files only.")


def _revoked(unit: UnitId) -> RevokedError:
    return RevokedError(
        f"Unit {unit} was revoked or trained again while it was exported. Export again: nothing is left."
    )
