"""Answers from a store: each shard's best survivor, their passes through one network, and one answer out of several.

`EnsemblePredictor` needs torch alone; `lightning_s3t.EnsembleModule` is the LightningModule.
"""

from lightning_s3t.serving.predictor import EnsemblePredictor

__all__ = ["EnsemblePredictor"]
