"""A report of a store to look at, and evidence that a third party can check."""

from lightning_s3t.reporting.evidence import Evidence, write_evidence
from lightning_s3t.reporting.report import StoreReport

__all__ = ["Evidence", "StoreReport", "write_evidence"]
