"""Concepts that the whole package shares: subjects, cells, units, guarantees, manifest, events and receipts."""
