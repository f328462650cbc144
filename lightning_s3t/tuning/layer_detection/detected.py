"""The blocks and the head that were detected in a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DetectedLayers:
    """Blocks and head of a network.

    Attributes:
        network: The path of the model that was recognised; None if it is of no known library.
        blocks: In forward order; a block may be several modules.
        head: The modules that make the prediction; empty if the model has none.
        source: How it was found, for display.
    """

    network: str | None
    blocks: Sequence[tuple[str, ...]]
    head: tuple[str, ...]
    source: str
