"""What a stage trains on, and for how long."""

from __future__ import annotations

from typing import Literal, TypeAlias

DataMode: TypeAlias = Literal["cumulative", "disjoint"]
"""A stage trains on all slices of its prefix ("cumulative", the paper's) or on the last one alone ("disjoint")."""

EpochRule: TypeAlias = Literal["full", "sisa"]
"""A stage has as many epochs as a fine-tune ("full"), or 2/(L+1) of them ("sisa")."""
