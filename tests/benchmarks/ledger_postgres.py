"""PostgreSQL beside SQLite: `python -m tests.benchmarks.ledger_postgres [subjects, 10^7] [units, 10^5] [requests, 300]`.

Two stores with as many subjects and units, one with its ledger in a file, one in a PostgreSQL server of its own on this
machine, which flushes each commit to the disk. They take turns with requests for one subject each, so a machine that changes its
pace slows both. The mark: the 99th percentile in PostgreSQL is at most 3 times SQLite's. Beside it, how fast subjects are
registered, how long a look for new requests takes, and how large the ledgers are. The units have no files.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import timeit
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_s3t.store import Store
from tests.benchmarks.ledger_scale import add_units, settings_for
from tests.postgres_server import PostgresServer
from tests.store.people_store import session

LIMIT_RATIO = 3.0
LOOKS = 5000


@dataclass
class Measured:
    """What came out for one ledger; times in seconds, sizes in bytes."""

    name: str
    store: Store
    server: PostgresServer | None = None
    add_units: float = 0.0
    register: float = 0.0
    forget: list[float] = field(default_factory=list)
    look: float = 0.0
    size: int = 0

    def fill(self, subjects: int, units: int) -> None:
        """Adds the units and registers the subjects."""
        start = time.perf_counter()
        add_units(self.store, units, self.analyze)
        self.add_units = time.perf_counter() - start
        start = time.perf_counter()
        session(self.store).register(f"user-{number}" for number in range(subjects))
        self.register = time.perf_counter() - start
        if self.server is None:
            self.size = sum(path.stat().st_size for path in self.store.path.glob("ledger.db*"))
            return
        with self.server.connect() as connection:  # what autovacuum does a minute later
            connection.execute("VACUUM ANALYZE")
            (self.size,) = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)

    def analyze(self) -> None:
        """Does what autovacuum does once a minute: else plans that were made for empty tables are kept."""
        if self.server is not None:
            with self.server.connect() as connection:
                connection.execute("ANALYZE")

    def ask(self, number: int) -> None:
        """Forgets one subject."""
        start = time.perf_counter()
        self.store.forget([f"user-{number}"])
        self.forget.append(time.perf_counter() - start)

    @property
    def p99(self) -> float:
        """The 99th percentile of the requests."""
        return sorted(self.forget)[int(0.99 * (len(self.forget) - 1))]


def show(found: list[Measured], subjects: int, units: int) -> None:
    """Prints the table."""
    headings = ("ledger", "units added a second", "registered a second", "size", "forget 1: median, p99, max", "look")
    table = Table(*headings, title=f"{subjects:,} subjects, {units:,} units")
    for one in found:
        table.add_row(
            one.name,
            f"{units / one.add_units:,.0f}",
            f"{subjects / one.register:,.0f}",
            f"{one.size / 2**20:,.0f} MiB",
            f"{1000 * statistics.median(one.forget):.1f}, {1000 * one.p99:.1f}, {1000 * max(one.forget):.1f} ms",
            f"{1e6 * one.look:.1f} us",
        )
    Console(width=150).print(table)


def main(arguments: list[str]) -> int:
    """Runs both; returns 1 above the mark."""
    subjects, units, requests = (*map(int, arguments), *(10_000_000, 100_000, 300)[len(arguments) :])
    server = PostgresServer(durable=True)
    settings = settings_for(units)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            Measured("SQLite", Store.create(Path(folder) / "sqlite", settings)),
            Measured(
                "PostgreSQL", Store.create(Path(folder) / "postgres", settings, ledger=server.new_address()), server
            ),
        ]
        for one in track(found, "registering", console=Console(stderr=True)):
            one.fill(subjects, units)
        for number in track(range(requests), "forgetting", console=Console(stderr=True)):
            for one in found:
                one.ask(number)
        for one in found:
            one.look = timeit.timeit(lambda one=one: one.store.request_number, number=LOOKS) / LOOKS  # type: ignore[misc]
            one.store.close()
    server.remove()
    show(found, subjects, units)
    ratio = found[1].p99 / found[0].p99
    print(f"PostgreSQL's p99 of a request for one subject: {ratio:.2f} times SQLite's (mark: {LIMIT_RATIO:g}).")
    return int(ratio > LIMIT_RATIO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
