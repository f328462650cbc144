"""The command `plan`: how long a plan lasts, and what it costs."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s3t.cli.prior_file import read_prior
from lightning_s3t.cli.worth import read_worth
from lightning_s3t.cli.years import Fixed, ScenarioName, show_years
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import DataMode, EpochRule, Partition, PlannerName
from lightning_s3t.plan.stage_rules import group_of_stage

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

    from lightning_s3t.plan.comparison import PlannerResult
    from lightning_s3t.plan.sequences import Budget

LOOKS = [1, 5, 20, 50]
LEVELS = [0.75, 0.5]
REFITS = ["7d"]
BASELINES = ("optimal", "bms", "cyclic", "sisa")
SHOWN_SEQUENCES = 24
FLOAT_BYTES = 4


def plan(
    *,
    shards: int | None = None,
    slices: int | None = None,
    budget: int | None = None,
    units: int | None = None,
    fine_tunes: float | None = None,
    sequences: PlannerName = "optimal",
    prior: Path | None = None,
    requests: list[int] = LOOKS,
    levels: list[float] = LEVELS,
    worth: str = "data",
    groups: int | None = None,
    data: DataMode = "cumulative",
    epochs: EpochRule | None = None,
    rows: int | None = None,
    scenario: ScenarioName = "typical",
    refit: list[str] = REFITS,
    years: float = 2,
    quality: float = 0.9,
    sharding: float = 0.0,
    model: str | None = None,
    layers: int | None = None,
    width: int = 768,
    classes: int = 10,
    rank: int = 16,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Show the sequences for a budget, the cost of training them, and how many deletions they withstand.

    With --rows it instead shows how a store does over years of requests and periodic fits. It tries several values for
    shards, slices, budget and epochs if you do not give them.

    Args:
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        budget: Number of sequences that each shard is trained on, B.
        units: Instead of a budget: the largest number of units to train for each shard.
        fine_tunes: Instead of a budget: the largest number of samples, in multiples of one full fine-tune.
        sequences: The planner that chooses the sequences.
        prior: A JSON or CSV file with the probability of a request: one number per slice, or one per subject (a CSV
            file with the header subject,prior). Without it, all slices are equally likely.
        requests: Numbers of requests after which to show what is left.
        levels: The least that should be served, as shares of the worth of a full store.
        worth: The worth of a shard by the share of its slices that serves: that share (data), one of the paper's
            accuracy curves (cifar-100, mnli, ...), or the folder of a store, for the scores of its units.
        groups: Number of layer groups, if there are fewer groups than slices. The plan is compared with one of as many
            slices as groups.
        data: Train a stage on all slices of its prefix (cumulative) or on the last one (disjoint).
        epochs: A stage has as many epochs as a fine-tune (full), or 2/(L+1) of them (sisa).
        rows: Number of people who may ask (the number of rows, if each is its own subject); compares settings over
            years.
        scenario: How often people ask, and how their requests arrive.
        refit: The time between fits: 7d, 4w, or never; several are compared.
        years: Number of years to simulate.
        quality: The quality to keep on 95 of 100 days; the cheapest choice that reaches it is marked.
        sharding: Loss of quality for each doubling of the number of shards, as a share.
        model: A model as `s3t layers` takes it, for example vit_base_patch16_224: adds the size of its snapshots.
        layers: In place of a model: the number of blocks of a transformer, for an estimate of the bytes.
        width: Width of these blocks.
        classes: Number of classes of the model, or of these blocks.
        rank: Rank of the LoRA adapters, on every linear layer.
        seed: Seed for random planners, and for the slices of subjects in the prior (as S3T(partition="public")
            assigns them).
        json: Print a JSON document.
    """
    curve = read_worth(worth)
    if rows is not None:
        left_out = {"units": units, "fine-tunes": fine_tunes, "prior": prior, "model": model, "layers": layers}
        given = [f"--{name}" for name, value in left_out.items() if value is not None]
        if given:
            raise ConfigurationError(
                f"Found --rows together with {', '.join(given)}. Leave these out, or leave --rows out."
            )
        fixed = Fixed(shards, slices, budget, epochs, groups, data)
        show_years(rows, scenario, refit, years, fixed, quality, curve, sharding, seed, json)
        return
    if shards is None or slices is None:
        raise ConfigurationError("Expected --shards and --slices, or --rows to compare several settings over years.")
    rule: EpochRule = epochs or "full"
    limit = _budget(budget, units, fine_tunes)
    partition = Partition(shards, slices, seed)
    known = read_prior(prior, partition) if prior is not None else None
    stages = _stage_bytes(slices, groups or slices, model, layers, width, classes, rank)
    from lightning_s3t.plan.comparison import compare

    planners = dict.fromkeys((sequences, *(name for name in BASELINES if name != sequences)))
    found = compare(
        shards, slices, limit, planners, known, requests, data, rule, seed, groups=groups, levels=levels, worth=curve
    )
    if groups is not None and groups < slices and known is None:
        # the same budget where each group has one slice
        coarse = min(budget, math.factorial(groups)) if budget is not None else limit
        found += compare(
            shards, groups, coarse, [sequences], None, requests, data, rule, seed, levels=levels, worth=curve
        )
    if json:
        print(json_format.dumps(_document(shards, slices, found, stages), indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(_tree(found[0], shards))
    console.print(_costs(found[0], shards, stages))
    console.print(_table(found, shards, requests, levels, worth, known is None))
    console.print(_quality(found[0]))


def _budget(budget: int | None, units: int | None, fine_tunes: float | None) -> Budget:
    given: list[Budget] = [{"units": units}] if units is not None else []
    given += [{"fine_tunes": fine_tunes}] if fine_tunes is not None else []
    given += [budget] if budget is not None else []
    if len(given) != 1:
        raise ConfigurationError(
            f"Found {len(given)} of --budget, --units and --fine-tunes. Expected exactly one of them: the number of "
            "sequences, or what they may cost."
        )
    return given[0]


def _stage_bytes(
    slices: int, groups: int, model: str | None, layers: int | None, width: int, classes: int, rank: int
) -> list[int] | None:
    """Return the bytes of a unit's snapshot by stage: its group's adapters and the head."""
    for name, value in (("width", width), ("classes", classes), ("rank", rank)):
        if value < 1:
            raise ConfigurationError(f"Expected --{name} to be at least 1 but got {value}.")
    group_bytes = _group_bytes(groups, model, layers, width, classes, rank)
    if group_bytes is None:
        return None
    return [group_bytes[group_of_stage(stage, slices, groups) - 1] for stage in range(1, slices + 1)]


def _group_bytes(
    groups: int, model: str | None, layers: int | None, width: int, classes: int, rank: int
) -> list[int] | None:
    if model is not None:
        from lightning_s3t.cli.models import make_model
        from lightning_s3t.tuning import DEFAULT_ADAPTER, describe_layers

        head, *found, _ = describe_layers(
            make_model(model, classes), groups, adapter={**DEFAULT_ADAPTER, "r": rank}
        ).rows
        return [FLOAT_BYTES * (group.trainable + head.trainable) for group in found]
    if layers is None:
        return None
    if layers < groups:
        raise ConfigurationError(
            f"There are {layers} layers for {groups} layer groups. Expected at least one layer per group: use fewer "
            "slices, or fewer groups than slices."
        )
    small, larger = divmod(layers, groups)
    # a rank-r adapter of a layer from a to b features has r(a + b) numbers: query, key and value 4rd, projection 2rd,
    # and 5rd for each of the two layers of the MLP (4d wide)
    block, head_size = 16 * rank * width, classes * (width + 1)
    sizes = [small + (group > groups - larger) for group in range(1, groups + 1)]
    return [FLOAT_BYTES * (size * block + head_size) for size in sizes]


def _snapshot_bytes(sequences: Iterable[Sequence[int]], shards: int, stages: list[int]) -> int:
    prefixes = {tuple(sequence[:stage]) for sequence in sequences for stage in range(1, len(sequence) + 1)}
    return shards * sum(stages[len(prefix) - 1] for prefix in prefixes)


def _document(shards: int, slices: int, found: Sequence[PlannerResult], stages: list[int] | None) -> dict[str, Any]:
    planners = []
    for one in found:
        entry: dict[str, Any] = {
            "planner": one.planner,
            "sequences": [list(sequence) for sequence in one.sequences],
            "units": one.cost.units * shards,
            "fine_tunes": one.cost.fine_tunes,
            "compute": one.cost.compute,
            "requests_until": [asdict(endurance) for endurance in one.until],
            "deletion_rate": one.lifetime,
            "objective": {**asdict(one.assessment), "gap": one.assessment.gap, "proven": one.assessment.proven},
            "after": [asdict(moment) for moment in one.moments],
        }
        if stages is not None and len(stages) == len(one.sequences[0]):
            entry["snapshot_bytes"] = _snapshot_bytes(one.sequences, shards, stages)
        planners.append(entry)
    return {"shards": shards, "slices": slices, "planners": planners}


def _tree(one: PlannerResult, shards: int) -> Tree:
    from rich.tree import Tree

    title = f"{one.planner}: {len(one.sequences)} sequences of the slices, for each of {shards} shards"
    tree = Tree(f"[bold]{title}[/bold]", guide_style="dim")
    branches = _trie_of(one.sequences)
    for branch in branches[:SHOWN_SEQUENCES]:
        _grow(tree, branch)
    if len(branches) > SHOWN_SEQUENCES:
        tree.add(f"... and {len(branches) - SHOWN_SEQUENCES} more (--json has them all)")
    return tree


def _grow(tree: Tree, branch: _Branch) -> None:
    node = tree.add(" - ".join(map(str, branch.slices)))
    for inner in branch.branches:
        _grow(node, inner)


def _costs(one: PlannerResult, shards: int, stages: list[int] | None) -> str:
    parts = [f"{one.cost.units * shards} units", f"{one.cost.fine_tunes:g} times the samples of one full fine-tune"]
    parts.append(f"{one.cost.compute:.3g} times its compute")
    if stages is not None:
        from rich.filesize import decimal

        parts.append(f"{decimal(_snapshot_bytes(one.sequences, shards, stages))} of snapshots")
    return f"Training: {', '.join(parts)}.\n"


def _table(
    found: Sequence[PlannerResult],
    shards: int,
    requests: Sequence[int],
    levels: Sequence[float],
    worth: str,
    uniform: bool,
) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    slices = len(found[0].sequences[0])
    of_what = "of the data" if worth == "data" else f"of a full store's worth ({worth})"
    caption = (
        f"until: expected requests until less than that share {of_what} serves; until 0, the deletion rate. "
        f"After so many requests: the share of the data that serves, and how many of the {shards} shards."
    )
    table = Table(caption=caption, box=SIMPLE, padding=(0, 0, 0, 1), show_edge=False)
    for name in ("", "seq.", "units", "fine-\ntunes", *(f"until\n{100 * level:g} %" for level in levels), "until\n0"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for look in requests:
        table.add_column(f"after\n{look}", justify="right", no_wrap=True)
    for one in found:
        cut = len(one.sequences[0])
        name = one.planner if cut == slices else f"{one.planner} L={cut}"
        numbers = [str(len(one.sequences)), str(one.cost.units * shards), f"{one.cost.fine_tunes:g}"]
        numbers += [_number(endurance.requests.mean) for endurance in one.until]
        shares = [f"{moment.data.mean:.0%}" for moment in one.moments]
        table.add_row(name, *numbers, _number(one.lifetime), *shares)
        serving = [f"{moment.shards.mean:.1f}" for moment in one.moments]
        table.add_row("  shards", *[""] * (4 + len(levels)), *serving, style="dim")
    if uniform:
        from lightning_s3t.plan import retention_bound

        bounds = [f"{retention_bound(shards, found[0].sequences, look) / slices:.0%}" for look in requests]
        table.add_section()
        table.add_row("at least", *[""] * (4 + len(levels)), *bounds)
        table.caption = f"{caption} At least: the closed-form lower bound for {found[0].planner}."
    return table


def _number(requests: float) -> str:
    return "never" if requests == math.inf else f"{requests:.{0 if requests >= 100 else 1}f}"


def _quality(one: PlannerResult) -> str:
    assessment = one.assessment
    text = f"Sum of the expected slices over the coming requests that hit a new slice: {assessment.value:.4g}"
    if assessment.proven:
        return f"{text}; no {len(one.sequences)} sequences have more (proven)."
    return f"{text}, within {assessment.gap:.1%} of a bound for any {len(one.sequences)} sequences."


@dataclass(frozen=True)
class _Branch:
    """The common slices of sequences, in order, and the branches after them.

    Attributes:
        slices: The slices of this stretch, in order.
        branches: The branches that follow; empty at a sequence's end.
    """

    slices: tuple[int, ...]
    branches: tuple[_Branch, ...]

    @property
    def units(self) -> int:
        """Number of units in this stretch and all that follow."""
        return len(self.slices) + sum(branch.units for branch in self.branches)


def _trie_of(sequences: Iterable[tuple[int, ...]]) -> tuple[_Branch, ...]:
    """Return the first branches of sequences.

    Args:
        sequences: Sequences of the slices.

    Example:
        >>> [first] = _trie_of([(0, 1, 2, 3), (0, 1, 3, 2)])
        >>> first.slices, [branch.slices for branch in first.branches], first.units
        ((0, 1), [(2, 3), (3, 2)], 6)
    """
    by_first: dict[int, list[tuple[int, ...]]] = {}
    for sequence in sequences:
        if sequence:
            by_first.setdefault(sequence[0], []).append(tuple(sequence))
    found = []
    for alike in by_first.values():
        shared = 1
        while all(len(sequence) > shared and sequence[shared] == alike[0][shared] for sequence in alike):
            shared += 1
        found.append(_Branch(alike[0][:shared], _trie_of(sequence[shared:] for sequence in alike)))
    return tuple(found)
