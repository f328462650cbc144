"""Finders: one for each family of models that says, or shows, where its blocks are."""

from lightning_s3t.tuning.finders.search import Found, find_blocks, find_head

__all__ = ["Found", "find_blocks", "find_head"]
