"""The comparison of unlearning methods: the same model, data, requests and seeds for each."""

from lightning_s3t.comparison.compare import compare
from lightning_s3t.comparison.comparison import Comparison
from lightning_s3t.comparison.results import Estimate, MethodResult, Moment, Setting

__all__ = ["Comparison", "Estimate", "MethodResult", "Moment", "Setting", "compare"]
