"""Detecting blocks and head: one file for each family of models that says, or shows, where they are."""

from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.search import find_head_of, find_layers_and_head, find_network

__all__ = ["DetectedLayers", "find_head_of", "find_layers_and_head", "find_network"]
