"""Copying a store to another kind of ledger or snapshots: the copy then replaces the store.

The copy is made while the store keeps answering requests. One transaction decides: in the store's ledger, which says
from then on that the copy answers. A copy that does not find such a decision about itself does not open. So exactly one
of the two answers at any time, even after an interruption.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from lightning_s3t.core.documents import STRICT, read_json
from lightning_s3t.errors import ConfigurationError, DamagedError, MovedError, StoreError
from lightning_s3t.store.backend import Backend, open_ledger
from lightning_s3t.store.disk.lock import ledger_lock
from lightning_s3t.store.folder import check_free, check_own_files, clear_half_written, make_folder
from lightning_s3t.store.heads.floor import problems, read_states
from lightning_s3t.store.keys.identities import KEY_FILE, KEY_VARIABLE, read_keys, write_keys
from lightning_s3t.store.ledgers.address import MOVED, has_ledger, write_moved
from lightning_s3t.store.ledgers.ledger import Ledger, OwnedFile, ledger_errors
from lightning_s3t.store.registered_files import RegisteredFiles
from lightning_s3t.store.requests.erasure import erase_queued
from lightning_s3t.store.requests.journal import make_journal, write_journal
from lightning_s3t.store.requests.leases import ANY_REQUEST, wait_out
from lightning_s3t.store.snapshots.keys import NOTE as KEYS
from lightning_s3t.store.snapshots.keys import are_nested, check_keys
from lightning_s3t.store.snapshots.place import NOTE as PLACE
from lightning_s3t.store.snapshots.place import check_addresses, open_place, owner_of
from lightning_s3t.store.units import parse_unit

NOTE = "moved_from"
BEGUN = "copied_to"
Progress = Callable[[int, int], None]
"""Called with the number of copied snapshots and their total."""
_Places = dict[str, str | None]
"""The locations of a store's snapshots and of their keys, by their notes."""
_ROUNDS = 5  # rounds of copying the ledger, if requests arrive in the meantime
_NOT_COPIED = frozenset({NOTE, BEGUN, "moved_to"})


@dataclass(frozen=True)
class _Origin:
    """A copy's record of the store that it was copied from.

    Attributes:
        folder: That store.
        token: A token that identifies this copy.
        place: The location of that store's snapshots, if not in its folder.
        owner: The token in that location, and in that of the keys, that identifies the store.
        decided: Whether the copy answers, so that only the old snapshots remain to be erased.
        inode: The inode of the copy's folder. Someone who hands over a store cannot know it, but could name any folder.
        keys: The location of that store's keys, if its snapshots are encrypted.
    """

    __pydantic_config__ = STRICT

    folder: str
    token: str
    place: str | None
    owner: str
    decided: bool
    inode: int
    keys: str | None = None


@dataclass(frozen=True)
class _Begun:
    """A store's record of an unfinished copy of it.

    Attributes:
        folder: The copy's.
        place: The location of the copy's snapshots, if not in its folder.
        owner: The token in that location, and in that of the keys, that identifies the store.
        inode: That of the store's folder.
        keys: The location of the copy's keys, if its snapshots are encrypted.
    """

    __pydantic_config__ = STRICT

    folder: str
    place: str | None
    owner: str
    inode: int
    keys: str | None = None


def copy_store(
    store: Backend,
    target: Path,
    ledger: str | None,
    snapshots: str | Path | None,
    keys: str | Path | None,
    progress: Progress,
) -> None:
    """Copy a store; the caller holds its fit lock.

    Args:
        store: The store's backend.
        target: The folder of the copy.
        ledger: The address of the copy's ledger; None for a file in its folder.
        snapshots: Where to put the copy's snapshots; None for its folder.
        keys: Where to put their keys; None for no encryption.
        progress: Called after each snapshot.

    Raises:
        ConfigurationError: An address is invalid, or the copy could not hold everything in the store.
        StoreError: Something could not be read or written, or the target is not empty. The store keeps answering.
    """
    place = check_addresses(target, ledger, snapshots)
    places = {PLACE: place, KEYS: check_keys(target, keys, place)}
    origin = _origin_of(store)
    _check_apart(target, places, origin)
    if ledger is not None:
        _check_features(store)
    if origin.keys is not None and keys is None:
        raise ConfigurationError(
            f"The snapshots of the store {store.folder} are encrypted, and those of the copy would not be. Give "
            "another folder for the copy's keys: `keys`, or s3t copy --keys. Nothing was changed."
        )
    copy = _make(store, target, ledger, places, origin)
    origin = replace(origin, inode=copy.folder.stat().st_ino)
    begun = _Begun(str(copy.folder), place, owner_of(copy.folder), store.folder.stat().st_ino, places[KEYS])
    try:
        with store.ledger.transaction():
            store.ledger.note({BEGUN: json.dumps(asdict(begun))})
        for _ in range(_ROUNDS):
            _copy_snapshots(store, copy, progress)
            head = _copy_ledger(store, copy, origin, places)
            if _lacks_snapshots(copy):  # a request has replaced the sums of a closed-form head since
                continue
            present = copy.snapshots.names()  # a request may have reached a copied snapshot
            for error in copy.snapshots.delete(present - copy.ledger.needed(present)).values():
                raise StoreError(f"Revoked snapshots could not be erased in {copy.folder} ({error}).")
            write_journal(copy)
            _check_equal(store, copy)
            for problem in problems(copy):
                raise StoreError(f"Read back from {copy.folder}: {problem} The store keeps answering.")
            if _give_up(store, copy, origin, head):
                break
            erase_queued(store)
        else:
            raise StoreError(
                f"Requests to the store {store.folder} come faster than its ledger can be copied. The store keeps "
                "answering, and nothing was changed in it. Pause the requests while the copy runs, and try again."
            )
        write_moved(store.folder, str(copy.folder), origin.token)
        settle(copy)
    except BaseException:
        clear_begun(store)
        raise
    finally:
        copy.ledger.close()


def clear_begun(store: Backend) -> str:
    """Erase the snapshots of an interrupted copy, which requests to the store do not reach; return what is left to do.

    Only for the holder of the fit lock: a copy in progress looks the same.

    Args:
        store: The store's backend.
    """
    text = store.ledger.notes(BEGUN).get(BEGUN)
    if not text:
        return ""
    with ledger_errors("The target of the store's copy"):
        begun = read_json(_Begun, text.encode())
    folder, where = Path(begun.folder), _where(begun)
    if not _is_own(store.folder, begun.inode):
        return f"An interrupted copy of the store may have left snapshots in {where}: the store was moved since."
    try:
        with store.ledger.transaction():  # raises an error if the copy answers already
            pass
        if (begun.place or begun.keys) is not None and not has_ledger(folder):
            if open_place(folder, begun.place, begun.owner, keys=begun.keys).names():
                return (
                    f"An interrupted copy of the store left snapshots in {where}, and its folder {folder} no longer "
                    "exists. If no store answers from there, erase all of them by hand except store.json."
                )
        elif _is_unfinished(folder, store.folder):
            there = open_place(folder, begun.place, begun.owner, keys=begun.keys)
            failed = there.delete(there.names())
            if failed:
                raise next(iter(failed.values()))
        with store.ledger.transaction():
            store.ledger.note({BEGUN: ""})
    except MovedError:
        return ""
    except (OSError, StoreError) as error:
        return f"An interrupted copy of the store left snapshots in {where}: {error}"
    return ""


def _where(record: _Origin | _Begun) -> str:
    place = record.place or record.folder
    return place if record.keys is None else f"{place} and their keys in {record.keys}"


def _is_unfinished(copy: Path, store: Path) -> bool:
    """Return whether a folder is a copy of a store that does not answer."""
    if not has_ledger(copy):
        return False
    ledger = open_ledger(copy)
    try:
        origin, is_made = _read_origin(ledger), "settings" in ledger.notes("settings")
    finally:
        ledger.close()
    return not is_made or (origin is not None and not origin.decided and origin.folder == str(store))


def settle(store: Backend) -> None:
    """Raise an error for an unfinished copy; finish a copy that answers because its original was retired.

    Args:
        store: The backend of the store that is being opened.

    Raises:
        StoreError: The original was not retired in favour of this copy, and still answers.
    """
    origin = _read_origin(store.ledger)
    if origin is None:
        return
    if not origin.decided:
        _check_own(store, origin)
        _check_decided(store, origin)
        with store.ledger.transaction():
            store.ledger.note({NOTE: _text(replace(origin, decided=True))})
    if not unerased(store):
        with store.ledger.transaction():
            store.ledger.note({NOTE: ""})


def unerased(store: Backend) -> str:
    """Erase the snapshots of the store that this one was copied from; return what is left to do.

    Args:
        store: The backend of the copy.
    """
    origin = _read_origin(store.ledger)
    if origin is None:
        return ""
    folder = Path(origin.folder)
    where = _where(origin)
    if not _is_own(store.folder, origin.inode):
        return (
            f"The snapshots in {where}, from which the store was copied, were not checked: the store was moved since."
        )
    try:
        if not folder.is_dir():
            if (origin.place or origin.keys) is None:
                return ""  # it was removed
        else:
            _check_decided(store, origin)
            if not (folder / MOVED).exists():
                write_moved(folder, str(store.folder), origin.token)
        left = open_place(folder, origin.place, origin.owner, keys=origin.keys)
        failed = left.delete(left.names())
    except (OSError, StoreError) as error:
        return f"The snapshots in {where}, from which the store was copied, could not be erased: {error}"
    if failed:
        return f"{len(failed)} snapshots in {where}, from which the store was copied, could not be erased."
    return ""


def _check_apart(target: Path, places: _Places, origin: _Origin) -> None:
    """Refuse a copy of which a part would be in a folder of the store, which is retired, and then removed."""
    own = [
        origin.folder,
        *(place for place in (origin.place, origin.keys) if place is not None and os.path.isabs(place)),
    ]
    new = [str(target), *(place for place in places.values() if place is not None and os.path.isabs(place))]
    for mine in own:
        for theirs in new:
            if are_nested(Path(mine), Path(theirs)):
                raise ConfigurationError(
                    f"{theirs} is the same folder as {mine}, which the store {origin.folder} uses, or inside it, or "
                    "around it. Expected another folder for each part of the copy. Nothing was changed."
                )


def _origin_of(store: Backend) -> _Origin:
    notes = store.ledger.notes(PLACE, KEYS)
    place, keys = notes.get(PLACE) or None, notes.get(KEYS) or None
    return _Origin(str(store.folder), uuid.uuid4().hex, place, owner_of(store.folder), False, -1, keys)


def _make(store: Backend, target: Path, ledger: str | None, places: _Places, origin: _Origin) -> Backend:
    """Create an empty store for the copy, or reuse that of an unfinished copy, which does not answer."""
    check_own_files(target)
    if not has_ledger(target):
        check_free(target)
    make_folder(target)
    with ledger_lock(target):
        clear_half_written(target)
        copy = Backend.of(target, create=True, ledger=ledger, snapshots=places[PLACE], keys=places[KEYS])
        try:
            begun = _read_origin(copy.ledger)
            is_made = "settings" in copy.ledger.notes("settings")
            if is_made and (begun is None or begun.decided or begun.folder != origin.folder):
                raise StoreError(f"{target} is already a store. Expected a new or an empty folder for the copy.")
            if not copy.ledger.keeps_features:  # that of an unfinished copy
                _check_features(store)
            if KEY_VARIABLE not in os.environ:
                keys = read_keys(store.folder)
                if not (target / KEY_FILE).exists() or read_keys(target) != keys:
                    write_keys(target, keys)
            make_journal(target)
        except BaseException:
            copy.ledger.close()
            raise
    return copy


def _check_features(store: Backend) -> None:
    if read_states(store):
        raise ConfigurationError(
            f"The store {store.folder} has closed-form heads (a floor). A ledger in a database cannot keep the "
            "features of their rows, because its log and its backups would keep those that a request removes. Copy "
            "the store to another folder: leave out `ledger`. Nothing was changed."
        )


def _copy_snapshots(store: Backend, copy: Backend, progress: Progress) -> None:
    owners: dict[str, str] = {}
    for owner, file in store.ledger.owned():
        if file.path in store.snapshots.owned([file.path]):
            owners.setdefault(Path(file.path).stem, f"unit {owner}" if owner else "the store (of a head)")
    for number, (digest, owner) in enumerate(sorted(owners.items())):
        progress(number, len(owners))
        if copy.snapshots.is_whole(digest):
            continue
        try:
            data = store.snapshots.get(digest, owner)
        except DamagedError:
            if store.ledger.needed([store.snapshots.name(digest)]):
                raise
            continue  # revoked since
        copy.snapshots.put(digest, data)
        if not copy.snapshots.is_whole(digest):
            raise StoreError(f"Read back from {copy.folder}, the snapshot {digest} differs from what was written.")
    progress(len(owners), len(owners))


def _lacks_snapshots(copy: Backend) -> bool:
    paths = {file.path for _, file in copy.ledger.owned()}
    return bool(copy.snapshots.owned(paths) - copy.snapshots.names())


def _copy_ledger(store: Backend, copy: Backend, origin: _Origin, places: _Places) -> tuple[int, str]:
    """Replace the contents of a ledger with those of another; return where the history ends."""
    source, target = store.ledger, copy.ledger
    with source.at_one_time(), target.transaction():
        target.empty()
        notes = source.all_notes()
        target.note({name: value for name, value in notes.items() if name not in _NOT_COPIED})
        _copy_people(source, target)
        for event in source.events():
            is_request = event.kind == "request" and event.request is not None
            target.append(event, source.forgotten_after(event.request or 0) if is_request else None)
        _copy_artifacts(store, copy)
        for name, rows in groupby(source.all_features(), itemgetter(0)):
            target.add_features(name, (row[1:] for row in rows))
        _copy_queue(store, copy)
        copy.authenticator.check()
        moved = {name: place or "" for name, place in places.items() if (notes.get(name) or None) != place}
        if moved:
            copy.authenticator.note(moved)
            copy.authenticator.check()
        target.note({NOTE: _text(origin)})
        return source.head()


def _copy_people(source: Ledger, target: Ledger) -> None:
    by_request = defaultdict[int, list[tuple[bytes, str]]](list)
    for hash_, request, cell in source.tombstones():
        by_request[request].append((hash_, cell))
    for request, rows in sorted(by_request.items()):
        target.bury(rows, request)
    for generation in source.count_generations():
        rows_of = ((hash_, band) for hash_, band, number in source.registered() if number == generation)
        target.register(rows_of, generation)
    target.mark(source.marks())
    target.schedule(source.scheduled())


def _copy_artifacts(store: Backend, copy: Backend) -> None:
    source, target = store.ledger, copy.ledger
    theirs, ours = RegisteredFiles(store.folder), RegisteredFiles(copy.folder)
    files = defaultdict[str, list[OwnedFile]](list)
    for owner, file in source.owned():
        is_snapshot = bool(store.snapshots.owned([file.path]))
        if not (is_snapshot and owner):  # a unit owns its snapshot because it is added
            files[owner].append(file if is_snapshot else ours.adopt(file, theirs))
    aside = [(f"aside:{place}", one) for place, one in source.artifacts_aside()]
    for owner, artifact in [*aside, *((one.name, one) for one in source.artifacts())]:
        target.begin(artifact.name)
        for file in files[owner]:
            target.own(file.path, artifact.name, file.evidence)
        cells = parse_unit(artifact.name).cells
        target.add(replace(artifact, cells=cells), copy.snapshots.name(artifact.digest))
        if owner != artifact.name:
            target.set_aside([artifact.name])
    for export in source.exports():
        target.add_export(export, {file.path: file.evidence for file in files[f"export:{export.name}"]})
    for file in files[""]:
        target.own(file.path, None, file.evidence)


def _copy_queue(store: Backend, copy: Backend) -> None:
    """Copy queued erasures other than snapshots, which the store itself erases before it is retired."""
    theirs, ours = RegisteredFiles(store.folder), RegisteredFiles(copy.folder)
    queued = [file for file in store.ledger.queued() if not store.snapshots.owned([file.path])]
    adopted = [ours.adopt(OwnedFile(file.path, file.evidence), theirs) for file in queued]
    copy.ledger.queue(
        replace(file, path=own.path, evidence=own.evidence) for file, own in zip(queued, adopted, strict=True)
    )


def _give_up(store: Backend, copy: Backend, origin: _Origin, head: tuple[int, str]) -> bool:
    """Decide that the copy answers from now on; return False if the store has changed since it was copied."""
    with store.ledger.transaction():
        unfinished = store.snapshots.owned(file.path for file in store.ledger.queued())
        if store.ledger.head() != head or unfinished or store.ledger.exports() != copy.ledger.exports():
            return False
        replicas = store.ledger.replicas_behind(ANY_REQUEST)
        store.ledger.give_up(str(copy.folder), origin.token)
    wait_out(replicas)  # they do not look at the copy, where the next request is made
    return True


def _check_equal(store: Backend, copy: Backend) -> None:
    with store.ledger.at_one_time():
        expected, head = _contents(store), store.ledger.head()
    with copy.ledger.at_one_time():
        found, copied = _contents(copy), copy.ledger.head()
    wrong = [kind for kind in expected if expected[kind] != found[kind]]
    if head == copied and wrong:  # otherwise a request arrived in the meantime, and the ledger is copied again
        raise StoreError(
            f"The copy in {copy.folder} has different {wrong[0]} than the store {store.folder}, which keeps "
            "answering; nothing was changed in it. Remove the copy, and report this."
        )


def _contents(store: Backend) -> dict[str, tuple[int, int]]:
    """Return by kind how many rows a ledger has, and a sum of their digests: the same in any order."""
    ledger = store.ledger
    order = {place: number for number, (place, _) in enumerate(ledger.artifacts_aside())}
    snapshots = ((owner, file.path) for owner, file in ledger.owned() if store.snapshots.owned([file.path]))
    return {
        "people": _digest(ledger.registered()),
        "tombstones": _digest(ledger.tombstones()),
        "marks": _digest(ledger.marks()),
        "scheduled requests": _digest(ledger.scheduled()),
        "events": _digest(ledger.events()),
        "units": _digest(ledger.artifacts()),
        "cells of units": _digest(ledger.index()),
        "units that are set aside": _digest((order[place], one) for place, one in ledger.artifacts_aside()),
        "exported copies": _digest(ledger.exports()),
        "rows of closed-form heads": _digest(ledger.all_features()),
        "snapshots": _digest(
            (f"aside:{order[int(owner[6:])]}" if owner.startswith("aside:") else owner, path)
            for owner, path in snapshots
        ),
    }


def _digest(rows: Iterable[object]) -> tuple[int, int]:
    count = total = 0
    for row in rows:
        count += 1
        total += int.from_bytes(sha256(repr(row).encode(errors="surrogatepass")).digest(), "big")
    return count, total % (1 << 256)


def _check_own(store: Backend, origin: _Origin) -> None:
    if not _is_own(store.folder, origin.inode):
        raise StoreError(
            f"The store {store.folder} is an unfinished copy of {origin.folder}, and was itself moved since. Nothing "
            "was changed. Remove it, and copy the store again (s3t copy)."
        )


def _is_own(folder: Path, inode: int) -> bool:
    found = folder.stat()
    return (found.st_ino, found.st_uid) == (inode, os.geteuid())


def _check_decided(store: Backend, origin: _Origin) -> None:
    try:
        open_ledger(Path(origin.folder)).close()
    except MovedError as error:
        if error.token == origin.token:
            return
        raise StoreError(
            f"The store {store.folder} is an unfinished copy of {origin.folder}, which was replaced by "
            f"{error.target}. Remove this folder."
        ) from error
    except StoreError as error:
        raise StoreError(
            f"The store {store.folder} is a copy of {origin.folder}. Which of them answers is unknown, because "
            f"{origin.folder} cannot be opened: {error} Make it available once while this store is opened."
        ) from error
    raise StoreError(
        f"The store {store.folder} is an unfinished copy of {origin.folder}, which still answers. Copy it again (s3t "
        "copy) to finish the copy, or remove this folder."
    )


def _read_origin(ledger: Ledger) -> _Origin | None:
    text = ledger.notes(NOTE).get(NOTE)
    if not text:
        return None
    with ledger_errors("The origin of the store's copy"):
        return read_json(_Origin, text.encode())


def _text(origin: _Origin) -> str:
    return json.dumps(asdict(origin))
