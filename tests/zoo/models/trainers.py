"""A trainer that says nothing and keeps nothing: what the tests of modules share."""

from __future__ import annotations

import lightning.pytorch as pl


def make_trainer(epochs: int = 1) -> pl.Trainer:
    """A quiet trainer on the CPU."""
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
