"""Finders: one for each family of models that says, or shows, where its blocks are."""

from lightning_s3t.tuning.finders.found import Found
from lightning_s3t.tuning.finders.search import find_head_of, find_layers_and_head, find_network

__all__ = ["Found", "find_head_of", "find_layers_and_head", "find_network"]
