"""The address of a ledger that is not in its store's folder: a file in the folder that names a database."""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lightning_s3t.core.documents import STRICT, read_json
from lightning_s3t.errors import ConfigurationError, MovedError, StoreError, StoreMismatchError
from lightning_s3t.store.disk.files import read_unlinked, write_atomically
from lightning_s3t.store.ledgers.sqlite import FILE as SQLITE_FILE

FILE = "ledger.json"
MOVED = "moved.json"
VARIABLE = "LIGHTNING_S3T_LEDGER"
DEFAULT_SCHEMA = "lightning_s3t"
_SCHEMES = ("postgresql", "postgres")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_FORM = "postgresql://user@host:5432/database?schema=name"


@dataclass(frozen=True)
class LedgerAddress:
    """The address of a ledger.

    Attributes:
        url: The libpq URL of the database, without a password.
        schema: The schema, which only this ledger uses.
        id: The token that identifies the store's folder, in the folder and in the database.
    """

    __pydantic_config__ = STRICT

    url: str
    schema: str
    id: str

    def __str__(self) -> str:
        return f"{self.url} (schema {self.schema})"


@dataclass(frozen=True)
class _Note:
    """The contents of the file: the address, and the file's own inode, which differs in a copy."""

    __pydantic_config__ = STRICT

    url: str
    schema: str
    id: str
    inode: int


def parse_address(text: str) -> tuple[str, str]:
    """Return the URL of a database, and the schema of the ledger.

    Args:
        text: A libpq URL, with `?schema=name`; the default schema is `lightning_s3t`.

    Raises:
        ConfigurationError: It is not such a URL, or it has a password, which would be written to a file.

    Example:
        >>> parse_address("postgresql://s3t@db.example/ml?schema=churn&sslmode=verify-full")
        ('postgresql://s3t@db.example/ml?sslmode=verify-full', 'churn')
        >>> parse_address("mysql://db.example")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: The ledger's address is 'mysql://db.example'. Expected ...
    """
    parts = urlsplit(text)
    options = [(option.partition("=")[0], option) for option in parts.query.split("&") if option]
    schema = next((option.partition("=")[2] for name, option in options if name == "schema"), DEFAULT_SCHEMA)
    if ":" in parts.netloc.rpartition("@")[0] or "password" in dict(options):
        raise ConfigurationError(
            "The ledger's address has a password, which would be written to a file in the store's folder. Leave it "
            "out: a password belongs in ~/.pgpass or in PGPASSWORD."
        )
    if parts.scheme not in _SCHEMES or parts.fragment or not _NAME.fullmatch(schema):
        raise ConfigurationError(
            f"The ledger's address is {text!r}. Expected {_FORM}, with the schema's name in lower-case letters, "
            "digits and '_'."
        )
    left = "&".join(option for name, option in options if name != "schema")
    return f"postgresql://{parts.netloc}{parts.path}{'?' if left else ''}{left}", schema


def check_folder_name(store: str | Path) -> None:
    """Raise an error for the address of a database where the store's folder is expected.

    Args:
        store: The given path.

    Raises:
        ConfigurationError: It is one.
    """
    if re.match(rf"({'|'.join(_SCHEMES)}):/", str(store)):
        raise ConfigurationError(
            f"The store is {str(store)!r}, the address of a database. Expected a folder, for the snapshots, the "
            "journal and the keys: give the folder as `store`, and the address as `ledger`."
        )


def has_ledger(folder: Path) -> bool:
    """Return whether a folder is a store: it has a ledger, or names one.

    Args:
        folder: The folder.
    """
    return (folder / SQLITE_FILE).exists() or (folder / FILE).exists()


def write_moved(folder: Path, target: str, token: str) -> None:
    """Record that a store was retired, so that a restored ledger does not answer in it.

    Args:
        folder: The store.
        target: The folder of the store that has taken its place.
        token: The token that identifies the copy.
    """
    write_atomically(folder / MOVED, json.dumps({"target": target, "token": token}, indent=2).encode())


def check_not_moved(folder: Path) -> None:
    """Raise an error for a store that was retired.

    Args:
        folder: The store.

    Raises:
        MovedError: It was.
        StoreError: The file that says so cannot be read.
    """
    path = folder / MOVED
    try:
        with read_unlinked(path) as file:
            found = json.loads(file.read(1 << 20))
        raise MovedError(folder, str(found["target"]), str(found["token"]))
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}): the store was retired. Restore the file.") from error


def read_address(folder: Path) -> LedgerAddress | None:
    """Return the address of a store's ledger; None if it is in the folder.

    Args:
        folder: The store.

    Raises:
        StoreError: The file cannot be read, or it is a copy (two folders must not have one ledger), or another user's
            (who would learn the password that libpq finds for the address).
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with read_unlinked(path) as file:
            found, now = read_json(_Note, file.read()), os.fstat(file.fileno())
        parsed = parse_address(f"{found.url}{'&' if '?' in found.url else '?'}schema={found.schema}")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}). Expected its original contents: restore the file."
        ) from error
    address = LedgerAddress(found.url, found.schema, found.id)
    if (folder / SQLITE_FILE).exists():
        raise StoreError(
            f"{folder} has a {SQLITE_FILE}, but its {FILE} names another ledger: {address}. A store has only one "
            "ledger. Restore the folder from a backup."
        )
    if (found.inode, now.st_uid) != (now.st_ino, os.geteuid()):
        given = os.environ.get(VARIABLE)
        if given is None or parse_address(given) != parsed:
            raise StoreError(
                f"{folder} is a copy of the folder that the ledger at {address} belongs to, or was restored from a "
                "backup, or is another user's. Nothing was changed, and the database was not contacted. A request "
                "would erase files in only one of the two folders. If the other folder no longer exists, and you "
                f"trust this one, set {VARIABLE} to that address once."
            )
        _write(path, address)
    return address


def make_address(folder: Path, text: str | None) -> LedgerAddress | None:
    """Return the address of a store's ledger when the store is created or opened; write it to a new store.

    Args:
        folder: The store, whose lock is held.
        text: The address; None for the one in the folder.

    Raises:
        ConfigurationError: It is not an address.
        StoreMismatchError: The store's ledger is elsewhere.
    """
    kept = read_address(folder)
    if text is None:
        return kept
    url, schema = parse_address(text)
    if kept is None and not (folder / SQLITE_FILE).exists():
        kept = LedgerAddress(url, schema, uuid.uuid4().hex)
        _write(folder / FILE, kept)
    elif kept is None or (kept.url, kept.schema) != (url, schema):
        where = str(kept) if kept is not None else SQLITE_FILE
        raise StoreMismatchError(
            f"The ledger of the store {folder} is {where}, not {url} (schema {schema}). Leave the argument out (the "
            "folder records where its ledger is), or give a new folder as `store`."
        )
    return kept


def write_address(folder: Path, url: str, schema: str, owner: str) -> None:
    """Write the address of the ledger of a store that is created from a backup.

    Args:
        folder: The store.
        url: The database.
        schema: The schema.
        owner: The token in the database that identifies the store's folder.
    """
    _write(folder / FILE, LedgerAddress(url, schema, owner))


def _write(path: Path, address: LedgerAddress) -> None:
    def text(inode: int) -> bytes:
        return json.dumps(asdict(_Note(address.url, address.schema, address.id, inode)), indent=2).encode()

    write_atomically(path, text)
