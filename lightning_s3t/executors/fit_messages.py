"""The messages of a fit: what it trains, why, and what is left."""

from __future__ import annotations

from collections.abc import Collection

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_s3t.columns import counted
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.executors.fit_config import FitConfig
from lightning_s3t.executors.time_budget import TimeBudget
from lightning_s3t.executors.unit_plan import FitPlan
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.layer_table import LayerTable
from lightning_s3t.tuning.layers import find_left_out
from lightning_s3t.tuning.stages import StageBuilder


def warn_of_plan(config: FitConfig, data: TrainingData, plan: FitPlan) -> None:
    """Warn of units that cannot be trained, or are trained again.

    Args:
        config: The arguments of S3T.
        data: The training data.
        plan: The plan.
    """
    few = [unit for unit in plan.impossible if data.partition.generation_of(unit.shard)]
    emptied = [unit for unit in plan.impossible if unit not in few]
    if emptied:
        rank_zero_warn(
            f"S3T: deletions and restrictions have left slices empty, so {len(emptied)} units cannot be trained: "
            f"{', '.join(map(str, emptied[:5]))}. The shards serve the units before them."
        )
    if few:
        rank_zero_warn(
            f"S3T: too few people came later for {data.partition.slices} slices, so {len(few)} units with an "
            f"empty slice cannot be trained: {', '.join(map(str, few[:5]))}. Their shards serve the units before "
            "them. Expected about ten people per slice who come together."
        )
    rows, stale = plan.with_other_rows, plan.with_other_subjects
    if rows:
        rank_zero_warn(
            f"S3T: rows with the same ids have changed, so {len(rows)} units are trained again: "
            f"{', '.join(map(str, rows[:5]))}."
        )
    if stale and not plan.carries_out:
        rank_zero_warn(
            f"S3T: {len(stale)} units are trained again, because the subjects of their slices have changed: "
            f"{', '.join(map(str, stale[:5]))}. Since the last fit, people were added, were released from a "
            "restriction, or were removed without a deletion request. If the data is the same, its rows are split at "
            f"random at every start: give random_split a generator with a fixed seed.{_about_newcomers(config, plan)}"
        )
    goes_on = plan.present or any(planned.stale for planned in plan.build)
    if config.newcomers == "append" and not config.keep_registry and goes_on:
        rank_zero_warn(
            "S3T: newcomers='append' needs the registry, which records who is new. Without it, people who come "
            "later join the existing slices, and the units that they affect are trained again."
        )


def say_what_to_train(config: FitConfig, data: TrainingData, builder: StageBuilder, plan: FitPlan) -> None:
    """Say which units a fit trains; before a store's first units, show the layers too.

    Args:
        config: The arguments of S3T.
        data: The training data.
        builder: Knows the layers.
        plan: The plan.
    """
    if config.newcomers == "append" and plan.newcomers:
        own = sum(data.partition.generation_of(planned.unit.shard) > 0 for planned in plan.build)
        rank_zero_info(
            f"S3T: {counted(plan.newcomers, 'subject')} came later and have a shard of their own: "
            f"{counted(own, 'unit')} of {data.partition.all_shards - data.partition.shards} such shards to train. "
            "Existing units stay."
        )
    if not plan.present:
        rank_zero_info(str(LayerTable.of(builder)))
        _warn_of_left_out(builder)
    rank_zero_info(
        f"S3T: {counted(len(plan.build), 'unit')} to train, {plan.present} already trained. Store: {config.store}"
    )


def say_what_is_left(budget: TimeBudget, plan: FitPlan, done: Collection[UnitId]) -> None:
    """Say what is left to train if the time of a fit was used up.

    Args:
        budget: The time limit.
        plan: The plan.
        done: The units that were trained or passed over.
    """
    if not budget.is_used_up:
        return
    left = [planned for planned in plan.build if planned.unit not in done]
    seconds = sum(map(budget.estimate, left))
    rank_zero_info(
        f"S3T: the time budget of {budget.seconds:g} s is used up. Left to train: "
        f"{counted(len(left), 'unit')}, some {seconds:.0f} s if trained one after another. The next fit continues."
    )


def _about_newcomers(config: FitConfig, plan: FitPlan) -> str:
    if not plan.newcomers or config.newcomers == "append":
        return ""
    return (
        f" {counted(plan.newcomers, 'subject')} came later; with S3T(newcomers='append') they would have a shard of "
        "their own, and no other unit would be trained again."
    )


def _warn_of_left_out(builder: StageBuilder) -> None:
    names = find_left_out(builder.root, builder.layers)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        rank_zero_warn(
            "S3T: parameters that a loss or the module itself holds outside the network stay unchanged: "
            f"{', '.join(names[:5])}{more}. To train them at every stage, name their module as part of the head, "
            f"head={[*builder.layers.head, '...']}; move a parameter of the module itself into a submodule. "
            "Otherwise set requires_grad_(False)."
        )
