"""Unlearning methods: what each trains, what a deletion request does to it, and what it promises."""

from lightning_s3t.methods.editing import EditingMethod, EditSession
from lightning_s3t.methods.method import UnlearningMethod
from lightning_s3t.methods.registry import METHODS, method_of, register_method
from lightning_s3t.methods.retrain import Retrain
from lightning_s3t.methods.s3t import S3TMethod
from lightning_s3t.methods.sisa import SISA
from lightning_s3t.methods.ssd import SSD

__all__ = [
    "METHODS",
    "SISA",
    "SSD",
    "EditSession",
    "EditingMethod",
    "Retrain",
    "S3TMethod",
    "UnlearningMethod",
    "method_of",
    "register_method",
]
