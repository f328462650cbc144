"""The store: ledger, snapshots, erasure and receipts."""

from lightning_s3t.core.receipts import Receipt, RequestRecord
from lightning_s3t.store.attempt import Attempt
from lightning_s3t.store.building import BuildSession
from lightning_s3t.store.copies.drill import Drill
from lightning_s3t.store.copies.recipients import Completion, HandedCopy
from lightning_s3t.store.overview import Overview
from lightning_s3t.store.requests.preview import Preview
from lightning_s3t.store.requests.scheduled import ScheduledRequest
from lightning_s3t.store.store import Store
from lightning_s3t.store.units import UnitRecord
from lightning_s3t.store.verification import Verification

__all__ = [
    "Attempt",
    "BuildSession",
    "Completion",
    "Drill",
    "HandedCopy",
    "Overview",
    "Preview",
    "Receipt",
    "RequestRecord",
    "ScheduledRequest",
    "Store",
    "UnitRecord",
    "Verification",
]
