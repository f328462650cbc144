"""Answers from a store: each shard's best survivor, their passes through one network, and one answer out of several.

`EnsemblePredictor` and `Replica` (one of several that serve) need torch alone; `lightning_s3t.EnsembleModule` is a
LightningModule.
"""

from lightning_s3t.serving.predictor import EnsemblePredictor
from lightning_s3t.serving.replica import Replica

__all__ = ["EnsemblePredictor", "Replica"]
