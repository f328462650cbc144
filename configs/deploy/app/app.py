"""The module that is served: the one of fit.yaml, with the weights that the fit started from."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_s3t.zoo.models import ImageClassifier


def make_model() -> pl.LightningModule:
    """Return the module."""
    pl.seed_everything(0, verbose=False)  # made-up weights; yours would load theirs from a file
    return ImageClassifier(
        "vit_tiny_patch16_224",
        num_classes=10,
        pretrained=False,
        model_arguments={
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "embed_dim": 64,
            "depth": 4,
            "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        learning_rate=0.003,
        weight_decay=0.01,
        schedule="cosine",
        warmup=0.1,
    )
