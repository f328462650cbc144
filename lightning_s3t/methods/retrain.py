"""Retraining from scratch: the reference that every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_s3t.methods.method import WholeModelMethod
from lightning_s3t.methods.registry import register_method


@register_method
@dataclass(frozen=True)
class Retrain(WholeModelMethod):
    """Trains one model on all data, and trains it again without the data on request.

    After the fit the serving model is bitwise equal to a first training without the data. Until then the model with the
    data in it keeps serving.

    Example:
        >>> Retrain().guarantee, Retrain().response
        ('exact', 'replace')
    """

    name = "retrain"
    guarantee = "exact"
