"""Verbs that ask and change a store: forget, status, receipts, provenance."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_s3t.store import Store


def forget(store: Path, subjects: list[str], allow_unknown: bool = False, json: bool = False) -> None:
    """Remove subjects from the model: revoke every unit that they reached, for good, and erase it.

    Args:
        store: The store's folder.
        subjects: The subjects' ids.
        allow_unknown: Take ids that the store has never seen too: they never enter a later fit.
        json: Print the receipt as a JSON document.
    """
    with _open(store) as opened:
        receipt = opened.forget(subjects, strict=not allow_unknown)
    if json:
        print(receipt.to_json())
        return
    from rich.console import Console

    console = Console()
    console.print(
        f"Request {receipt.request}: {receipt.subjects} subjects, {receipt.already_forgotten} of them forgotten "
        f"before, {receipt.unknown} never seen."
    )
    console.print(f"Revoked {len(receipt.revoked)} units: {', '.join(receipt.revoked) or 'none'}.")
    console.print(f"Erased {receipt.erased_files} files, {receipt.erased_bytes:,} bytes.")
    serving = ", ".join(f"shard {shard}: {unit or 'nothing'}" for shard, unit in receipt.serving.items())
    console.print(f"Serving now: {serving}.")


def status(store: Path) -> None:
    """Show what a store holds: each shard's orders and stages, who serves, and how many deletions are left.

    Args:
        store: The store's folder.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lightning_s3t.plan import UnitId, deletion_rate, harmonic, survivors

    with _open(store) as opened:
        alive, partition = opened.alive(), opened.partition
        orders = [tuple(order) for order in opened.options.get("sequences", [])]
        requests = opened.request_number
    serving = survivors(alive, {unit: record.score for unit, record in alive.items() if record.score is not None})
    table = Table(title=f"Store {escape(str(store))}", caption="● serves, ○ alive, · revoked or not trained yet")
    table.add_column("shard", justify="right")
    for order in orders:
        table.add_column("-".join(map(str, order)), justify="center")
    for shard in range(partition.shards):
        cells = []
        for order in orders:
            marks = ""
            for unit in UnitId(shard, order).lineage:
                served = shard in serving and unit in serving[shard].lineage
                marks += "●" if served else "○" if unit in alive else "·"
            cells.append(marks)
        table.add_row(str(shard), *cells)
    console = Console()
    console.print(table)
    console.print(f"Requests carried out: {requests}. Shards that serve: {len(serving)} of {partition.shards}.")
    if orders:
        first = len({order[0] for order in orders})
        rate = deletion_rate(partition.shards, partition.slices, first)
        # of the coupons that `deletion_rate` collects, those that are left: the first slices that are not asked for yet
        left = partition.shards * partition.slices * harmonic(sum(unit.stage == 1 for unit in alive))
        console.print(
            f"Further requests that it lasts, on average: {left:.0f}; a full store: {rate:.0f} (uniform requests)."
        )
    if len(serving) < partition.shards:
        console.print("Advice: call fit with the same store. It trains again what was revoked, without the forgotten.")


def receipts(store: Path) -> None:
    """Print the receipts of all requests as JSON.

    Args:
        store: The store's folder.
    """
    with _open(store) as opened:
        print(json_format.dumps([json_format.loads(receipt.to_json()) for receipt in opened.receipts()], indent=2))


def provenance(store: Path, unit: str | None = None) -> None:
    """Print what the units that are alive were made from, as JSON.

    Args:
        store: The store's folder.
        unit: Only this one's, for example 0/2-0.
    """
    from lightning_s3t.plan import UnitId

    with _open(store) as opened:
        found = opened.provenance(UnitId.parse(unit) if unit is not None else None)
    print(json_format.dumps(found, indent=2, sort_keys=True))


def _open(store: Path) -> Store:
    from lightning_s3t.store import Store

    return Store.open(store)
