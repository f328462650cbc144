"""The server's side of a federated closed-form head: the contributions of clients, each of which replaces its last."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote

import lightning.pytorch as pl

from lightning_s3t.core.documents import read_json
from lightning_s3t.errors import ConfigurationError, DataError, NoSurvivorError, StoreError, StoreMismatchError
from lightning_s3t.federated.contribution import Contribution
from lightning_s3t.serving.closed_form_heads import RidgeLayer
from lightning_s3t.store.disk.files import (
    half_written_name,
    open_own,
    read_unlinked,
    sha256_of,
    unlink_all,
    write_atomically,
)
from lightning_s3t.store.disk.lock import ledger_lock
from lightning_s3t.store.heads.feature_sums import FeatureSums
from lightning_s3t.tuning.head_features import HeadFeatures
from lightning_s3t.tuning.ridge import solve_head

_HISTORY, _CLIENTS, _SUFFIX = "history.jsonl", "clients", ".safetensors"
_LONGEST = 200  # characters of a file's name


@dataclass(frozen=True)
class Change:
    """What the arrival of a contribution, or a client's leaving, has changed.

    Attributes:
        client: The client.
        time: When it was on disk (UTC, ISO 8601).
        requests: Number of requests of the client that the head has taken in; None if the client has left.
        rows_before: Number of the client's rows before.
        rows: Number of the client's rows now.
        digest: The SHA-256 of the contribution; empty if the client has left.
        store: The identity of the client's store; empty if the client has left.
    """

    client: str
    time: str
    requests: int | None
    rows_before: int
    rows: int
    digest: str
    store: str = ""


class FederatedHead:
    """A closed-form head on the rows of many clients, of which none sends a row.

    It is solved from the sum of all clients' contributions. These are sums of integers, so the head is bitwise the one
    of a single store with all rows, in whatever order contributions come. After a request, the client sends its
    contribution again, and the head is the one of all rows that are left (Quan, Wu and Montana, arXiv 2603.12977,
    whose heads are equal to a retrained one but for rounding errors).

    Args:
        folder: Where contributions are kept; it is made if it does not exist.

    Raises:
        ConfigurationError: The folder has other files in it.

    Example:
        >>> import tempfile
        >>> from lightning_s3t.federated import FederatedHead
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     head = FederatedHead(folder)
        ...     # head.update("hospital-7", contribution); served = head.module(model)
        ...     head.clients()
        {}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._contributions = self.folder / _CLIENTS
        if self.folder.exists() and any(self.folder.iterdir()) and not self._contributions.is_dir():
            raise ConfigurationError(
                f"{self.folder} has other files in it. Expected a new folder, or one of a federated head."
            )
        self._contributions.mkdir(parents=True, exist_ok=True)
        with ledger_lock(self.folder):
            self._finish()

    def update(self, client: str, contribution: Contribution) -> Change:
        """Put a client's contribution in place of its last one, which is erased.

        When this returns, the change is on disk. The same contribution may come again.

        Args:
            client: The client's name.
            contribution: Its contribution.

        Raises:
            StoreMismatchError: Other clients' contributions are to another head: of another network, or with other
                settings.
            StoreError: The client's contribution is from another store than its last one; or an earlier one, even
                before the client left, had taken in more requests: an old message would bring data back.
        """
        with ledger_lock(self.folder):
            path, history = self._path(client), self._finish()
            _check_new(client, contribution, history)
            for other, kept in islice(self._read(history, but=client), 1):  # the others agree with each other
                if kept.terms != contribution.terms:
                    raise StoreMismatchError(
                        f"The contribution of {client!r} is to another head than that of {other!r}: "
                        f"{', '.join(_differences(kept, contribution))} differ. Nothing was changed. Fit all clients "
                        "with the same model, checkpoint and settings of the head."
                    )
            data = contribution.encode()
            digest = hashlib.sha256(data).hexdigest()
            write_atomically(self._announced, digest.encode())
            write_atomically(path, data)
            change = self._note(client, contribution, _rows_in(history, client), digest)
            self._announced.unlink()
            return change

    def remove(self, client: str) -> Change:
        """Erase a client's contribution.

        Args:
            client: The client.

        Raises:
            ConfigurationError: There is none of this client.
        """
        with ledger_lock(self.folder):
            path, history = self._path(client), self._finish()
            if not path.exists():
                known = ", ".join(self._names()) or "there are none"
                raise ConfigurationError(f"There is no contribution of {client!r}. Expected one of: {known}.")
            for error in unlink_all([path]).values():
                raise StoreError(f"The contribution of {client!r} could not be erased: {error}. It still counts.")
            return self._note(client, None, _rows_in(history, client), "")

    def clients(self) -> dict[str, int]:
        """Return the number of rows of each client."""
        with ledger_lock(self.folder):
            return {client: contribution.sums.rows for client, contribution in self._read(self.history())}

    def history(self) -> list[Change]:
        """Return all changes, the first first."""
        try:
            return [read_json(Change, line) for line in self._written().splitlines()]
        except ValueError as error:
            raise StoreError(f"{self.folder / _HISTORY} is damaged: {error}. Restore it from a backup.") from error

    def sums(self) -> FeatureSums:
        """Return the sums over the rows of all clients.

        Raises:
            NoSurvivorError: There are no rows.
        """
        return self._total()[1]

    def module(self, model: pl.LightningModule) -> pl.LightningModule:
        """Return a copy of a model that answers with the head, as it is now. Make another after each change.

        Args:
            model: The model that the clients fitted with, before any training.

        Raises:
            NoSurvivorError: There are no rows.
            StoreMismatchError: It is another model.
        """
        contribution, sums = self._total()
        terms = contribution.terms
        served = copy.deepcopy(model).eval()
        terms.check_model(served)
        features = HeadFeatures(served, terms.layers.network, terms.part)
        layer = RidgeLayer(terms.part.width, terms.part.outputs, features.of)
        layer.load(solve_head(sums))
        layer.to(next(served.get_submodule(terms.part.layer).parameters()).device)
        served.set_submodule(terms.part.layer, layer)
        features.attach()
        return served.requires_grad_(False)

    def _total(self) -> tuple[Contribution, FeatureSums]:
        with ledger_lock(self.folder):
            found = [contribution for _, contribution in self._read(self.history())]
        if not any(contribution.sums.rows for contribution in found):
            raise NoSurvivorError(f"No client has rows in the federated head {self.folder}. Update it first.")
        total = FeatureSums(found[0].terms.part, found[0].terms.task)
        for contribution in found:
            total.add_sums(contribution.sums)
        return found[0], total

    @property
    def _announced(self) -> Path:
        """The file with the digest of the contribution that is being written.

        A crash may keep the contribution out of the history, and it may be the same as an earlier one: by the history
        alone it would then be a file from a backup.
        """
        return self._contributions / "announced"

    def _path(self, client: str) -> Path:
        if not client or len(name := quote(client, safe="")) > _LONGEST:
            raise ConfigurationError(f"The client's name is {client!r}. Expected a short text.")
        return self._contributions / f"{name}{_SUFFIX}"

    def _read_one(self, client: str, history: list[Change]) -> Contribution:
        with read_unlinked(self._path(client)) as file:
            data = file.read()
        try:
            found = Contribution.decode(data)
        except DataError as error:
            raise StoreError(
                f"The contribution of {client!r} cannot be read: {self._path(client)} is damaged, or of another "
                f"version of lightning-s3t ({error}). Remove the client, and let it send its contribution again."
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        changes = _changes_of(client, history)
        if changes and digest != changes[-1].digest and digest.encode() != _read_if_there(self._announced):
            _check_not_restored(client, found, digest, changes)
        return found

    def _names(self) -> list[str]:
        return [unquote(path.name.removesuffix(_SUFFIX)) for path in sorted(self._contributions.glob(f"*{_SUFFIX}"))]

    def _read(self, history: list[Change], but: str | None = None) -> Iterator[tuple[str, Contribution]]:
        for client in self._names():
            if client != but:
                yield client, self._read_one(client, history)

    def _finish(self) -> list[Change]:
        """Finish what a crash has interrupted; return the history. For the holder of the lock."""
        unlink_all(path for path in self._contributions.iterdir() if half_written_name(path))
        history = self.history()
        last = {change.client: change for change in history}
        names = self._names()
        for client in names:  # it was killed between the contribution and the line about it
            digest = sha256_of(self._path(client))
            if client in last and digest == last[client].digest:
                continue
            with suppress(StoreError):  # whoever reads it gets the error
                found = self._read_one(client, history)
                history.append(self._note(client, found, _rows_in(history, client), digest))
        for client in [client for client, change in last.items() if change.digest and client not in names]:
            history.append(self._note(client, None, last[client].rows, ""))
        self._announced.unlink(missing_ok=True)
        return history

    def _written(self) -> bytes:
        """Return the lines of the history, without one that a crash has left torn."""
        found = _read_if_there(self.folder / _HISTORY)
        return found[: found.rfind(b"\n") + 1]

    def _note(self, client: str, after: Contribution | None, rows_before: int, digest: str) -> Change:
        change = Change(
            client=client,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            requests=after.requests if after is not None else None,
            rows_before=rows_before,
            rows=after.sums.rows if after is not None else 0,
            digest=digest,
            store=after.store if after is not None else "",
        )
        size = len(self._written())
        with open(self.folder / _HISTORY, "ab", opener=open_own) as file:
            file.truncate(size)
            file.write(json.dumps(asdict(change)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return change


def _read_if_there(path: Path) -> bytes:
    try:
        with read_unlinked(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _changes_of(client: str, history: list[Change]) -> list[Change]:
    return [change for change in history if change.client == client]


def _newest(store: str, changes: list[Change]) -> int:
    """Return the most requests that the head has taken in of a client's store."""
    return max((change.requests or 0 for change in changes if change.store == store), default=0)


def _check_new(client: str, contribution: Contribution, history: list[Change]) -> None:
    changes = _changes_of(client, history)
    if changes and changes[-1].digest and changes[-1].store != contribution.store:
        raise StoreError(
            f"The contribution of {client!r} is from another store than its last one, so it may bring data back that a "
            "request has removed there. Nothing was changed. If the client has a new store, remove the client first."
        )
    newest = _newest(contribution.store, history)  # under whatever name
    if contribution.requests < newest:
        raise StoreError(
            f"The contribution of {client!r} has taken in {contribution.requests} requests, but an earlier one "
            f"{newest}: it is an older message, and would bring data back. Nothing was changed. Read the contribution "
            "from the client's store again."
        )


def _check_not_restored(client: str, contribution: Contribution, digest: str, changes: list[Change]) -> None:
    """Check that a file which the client's newest change does not name is one that a crash kept out of the history."""
    is_known = any(change.digest == digest for change in changes)
    if is_known or contribution.requests < _newest(contribution.store, changes):
        raise StoreError(
            f"The file of the contribution of {client!r} is an earlier one than the history says: it was restored from "
            "a backup, and would bring data back. Let the client send its contribution again, or remove the client."
        )


def _rows_in(history: list[Change], client: str) -> int:
    """Return the number of a client's rows after the newest change."""
    return next((change.rows for change in reversed(history) if change.client == client), 0)


def _differences(one: Contribution, other: Contribution) -> list[str]:
    mine, theirs = one.terms.model_dump(), other.terms.model_dump()
    return [name for name in mine if mine[name] != theirs[name]]
