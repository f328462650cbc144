"""The store: ledger, snapshots, erasure and receipts."""

from lightning_s3t.store.attempt import Attempt
from lightning_s3t.store.receipt import Receipt
from lightning_s3t.store.record import UnitRecord
from lightning_s3t.store.store import Store

__all__ = ["Attempt", "Receipt", "Store", "UnitRecord"]
