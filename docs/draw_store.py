"""Draws the picture of the page "Keeping a store": `python docs/draw_store.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from lightning_s3t.plan import optimal, units_of
from lightning_s3t.plots import plot_store
from lightning_s3t.store import Store

PICTURES = Path(__file__).parent / "pictures"
SHARDS, SLICES, ORDERS, REQUESTS = 5, 6, 4, 6


def draw_status() -> None:
    """A store after some requests, whose units were never really trained."""
    orders = optimal(SLICES, ORDERS)
    settings = {"partition": {"shards": SHARDS, "slices": SLICES, "seed": 0}}
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store", settings) as store:
        with store.building() as building:
            building.note_options({"sequences": orders})
            for unit in units_of(SHARDS, orders):
                building.start_unit(unit, "key").commit({"weight": torch.rand(2)}, {})
        for number in range(REQUESTS):
            store.forget([f"user-{number}"], strict=False)
        plot_store(store.status()).savefig(PICTURES / "status.png", dpi=110)


if __name__ == "__main__":
    draw_status()
