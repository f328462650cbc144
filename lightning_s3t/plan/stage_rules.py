"""The data and the number of epochs of a stage."""

from __future__ import annotations

from typing import Literal, TypeAlias

DataMode: TypeAlias = Literal["cumulative", "disjoint"]
"""A stage trains on all slices of its prefix ("cumulative", as in the paper) or only on the last one ("disjoint")."""

EpochRule: TypeAlias = Literal["full", "sisa"]
"""A stage has as many epochs as a fine-tune ("full"), or 2/(L+1) of that number ("sisa")."""


def group_of_stage(stage: int, slices: int, groups: int) -> int:
    """Return the layer group that a stage trains, from 1 (the top one).

    With as many groups as slices, each stage has its own (the paper's). With fewer, consecutive stages train the same
    group, each from where the one before left it; with one group, every stage trains all layers (SISA).

    Args:
        stage: 1 to `slices`.
        slices: Number of slices, L, and so of stages.
        groups: Number of layer groups, at most L.

    Example:
        >>> [group_of_stage(stage, slices=6, groups=3) for stage in range(1, 7)]
        [1, 1, 2, 2, 3, 3]
    """
    return -(-stage * groups // slices)


def newest_stages(stage: int, slices: int, groups: int) -> tuple[int, ...]:
    """Return the stages whose snapshots make up a model after a stage: the last that trained each layer group.

    Args:
        stage: 0 to `slices`; 0 is the pretrained model, which needs none.
        slices: Number of slices, L.
        groups: Number of layer groups.

    Example:
        >>> newest_stages(5, slices=6, groups=3), newest_stages(3, slices=3, groups=1)
        ((2, 4, 5), (3,))
    """
    newest = {group_of_stage(earlier, slices, groups): earlier for earlier in range(1, stage + 1)}
    return tuple(newest.values())
