"""Writes the golden files of the store's formats: `python -m tests.store.golden_store`.

Run it when a format changes, after its number was raised. It writes a file for today's number and leaves those of older
numbers, which tests then expect to be refused. See docs/compatibility.md.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

from lightning_s3t.core import receipts
from lightning_s3t.plan import UnitId, units_of
from lightning_s3t.store import Store
from lightning_s3t.store.ledgers import sqlite as sqlite_ledger
from tests.store.people_store import session

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = {"partition": {"shards": 2, "slices": 2, "seed": 0}}
PEOPLE = [f"user-{number}" for number in range(12)]
UNITS = units_of(2, [(0, 1), (1, 0)])


def ledger_archive(number: int) -> Path:
    """The golden store whose ledger has a format."""
    return GOLDEN / f"ledger-{number}.tar.gz"


def receipt_file(number: int) -> Path:
    """The golden receipt of a format."""
    return GOLDEN / f"receipt-{number}.json"


def tensor_of(unit: UnitId) -> torch.Tensor:
    """What a unit of the golden store holds."""
    return torch.tensor([float(UNITS.index(unit)), -0.5])


def make(path: Path) -> None:
    """A store with a request of each kind, a scheduled and a cancelled one, and a rotation of the key."""
    with Store.create(path, SETTINGS) as store:
        session(store).register(PEOPLE)
        for unit in UNITS:
            session(store).start_unit(unit, f"key-{unit}").commit({"w": tensor_of(unit)}, {"unit": str(unit)}, 0.5)
        in_first, in_second = ([one for one in PEOPLE if store.partition.place(one).shard == shard] for shard in (0, 1))
        store.restrict([in_second[0]])
        store.release([in_second[0]])
        store.forget([in_first[0]], request_id="ticket-1")
        store.rectify([in_first[1]])
        store.schedule(in_second[1:3], datetime(2200, 1, 1, tzinfo=timezone.utc))
        store.cancel([in_second[2]])
        store.rotate_key()


def expected(store: Store) -> dict[str, object]:
    """What an open golden store has to give, JSON-ready."""
    return {
        "alive": sorted(map(str, store.alive())),
        "forgotten": sorted(store.forgotten(PEOPLE)),
        "requests": store.request_number,
        "pending": len(store.pending()),
        "receipts": [json.loads(record.to_json()) for record in store.receipts()],
    }


def write() -> list[Path]:
    """Write the files of today's formats."""
    GOLDEN.mkdir(exist_ok=True)
    archive, receipt = ledger_archive(sqlite_ledger.FORMAT), receipt_file(receipts.FORMAT)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        make(path)
        with Store.open(path) as store:
            found = expected(store)
            receipt.write_text(store.receipts()[2].to_json() + "\n")
        (Path(folder) / "expected.json").write_text(json.dumps(found, indent=1) + "\n")
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    tar.add(file, file.relative_to(folder), recursive=False, filter=_anonymous)
        archive.write_bytes(gzip.compress(data.getvalue(), 9, mtime=0))
    return [archive, receipt]


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


if __name__ == "__main__":
    for file in write():
        print(file, file.stat().st_size, "bytes")
