"""The command `simulate`: what remains of a plan, request by request."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_s3t.cli.prior_file import read_prior
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Partition, PlannerName

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_s3t.plan import Simulation, SliceSequence
    from lightning_s3t.plan.problem import Prior
    from lightning_s3t.plan.theory.simulation import Requester

SHOWN_PLANNERS: list[PlannerName] = ["optimal", "cyclic", "sisa"]
SHOWN_ROWS = 10
CURVE = 100  # points
FIRST_TRIALS = 200


def simulate(
    *,
    shards: int,
    slices: int,
    budget: int,
    sequences: list[PlannerName] = SHOWN_PLANNERS,
    requester: Literal["slice", "subject", "sample", "adaptive"] = "slice",
    sizes: int | None = None,
    prior: Path | None = None,
    until: int | None = None,
    trials: int = 10_000,
    seed: int = 0,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Simulate deletion requests against a plan, many times, and show what remains.

    Args:
        shards: Number of shards, m.
        slices: Number of slices of a shard, L.
        budget: Number of sequences that each shard is trained on, B (SISA has one).
        sequences: The planners that choose the sequences; several are shown side by side.
        requester: Each request is for a slice, independent of earlier ones (slice), or each subject or sample asks once
            (subject, sample), or an adversary who knows the plan requests the most harmful slice (adaptive).
        sizes: Number of subjects or samples per slice, for these requesters.
        prior: A JSON or CSV file that says how likely a request is, as for s3t plan.
        until: The last number of requests to show. By default, until hardly anything is left.
        trials: Number of histories of requests to draw.
        seed: Seed of the random draws.
        plot: Write the curves with their 95 % intervals to this picture (PNG, PDF or SVG).
        json: Print a JSON document.
    """
    from lightning_s3t import plan

    known = read_prior(prior, Partition(shards, slices, seed)) if prior is not None else None
    if until is not None and until < 1:
        raise ConfigurationError(f"Expected --until to be at least 1 but got {until}.")
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigurationError(
            f"The format of the picture {plot} is unknown. Expected a name that ends in .png, .pdf or .svg."
        )
    families: dict[str, tuple[SliceSequence, ...]] = {
        name: plan.plan_sequences(
            name, slices, 1 if name == "sisa" else budget, seed, known if name in plan.PRIOR_PLANNERS else None
        )
        for name in dict.fromkeys(sequences)
    }
    last = until if until is not None else _end(shards, families, known, requester, sizes, seed)
    looks = sorted({round(last * point / CURVE) for point in range(CURVE + 1)})
    found: dict[str, Simulation] = {}
    for name, family in families.items():
        found[name] = plan.simulate(shards, family, looks, trials, known, requester, sizes, seed)
    if json:
        print(json_format.dumps(_document(shards, slices, requester, families, found), indent=2))
    else:
        from rich.console import Console

        Console().print(_table(shards, slices, requester, found))
    if plot is not None:
        from lightning_s3t.plots import plot_survivors

        plot_survivors(found, shards, slices).savefig(plot, dpi=130)


def _end(
    shards: int,
    families: Mapping[str, tuple[SliceSequence, ...]],
    prior: Prior | None,
    requester: Requester,
    sizes: int | None,
    seed: int,
) -> int:
    """Return a number of requests after which hardly anything is left, from a few trials."""
    from lightning_s3t import plan

    lifetimes = [
        plan.simulate(shards, family, [], FIRST_TRIALS, prior, requester, sizes, seed).lifetime.mean
        for family in families.values()
    ]
    slices = len(next(iter(families.values()))[0])
    return round(1.2 * max((mean for mean in lifetimes if mean < float("inf")), default=shards * slices)) + 1


def _document(
    shards: int,
    slices: int,
    requester: str,
    families: Mapping[str, Sequence[Sequence[int]]],
    found: Mapping[str, Simulation],
) -> dict[str, Any]:
    planners = [
        {"planner": name, "sequences": [list(sequence) for sequence in families[name]], **asdict(simulation)}
        for name, simulation in found.items()
    ]
    return {"shards": shards, "slices": slices, "requester": requester, "planners": planners}


def _table(shards: int, slices: int, requester: str, found: Mapping[str, Simulation]) -> Table:
    from rich.table import Table

    trials = next(iter(found.values())).trials
    table = Table(
        title=f"What remains of {shards} shards with {slices} slices each, requester: {requester}",
        caption=f"slices: mean length of a shard's best surviving prefix; until 0: requests until nothing is left; "
        f"95 % intervals of {trials:,} trials",
    )
    table.add_column("after", justify="right", no_wrap=True)
    for name in found:
        table.add_column(f"{name}\nslices", justify="right", no_wrap=True)
        table.add_column("\nshards", justify="right", no_wrap=True)
    moments = {name: {moment.requests: moment for moment in simulation.moments} for name, simulation in found.items()}
    looks = list(next(iter(moments.values())))
    for look in looks[:: max(1, len(looks) // SHOWN_ROWS)]:
        cells = []
        for by_look in moments.values():
            length, serving = by_look[look].length, by_look[look].shards
            cells.append(f"{length.mean:.2f} ± {length.interval[1] - length.mean:.2f}")
            cells.append(f"{serving.mean:.1f}")
        table.add_row(str(look), *cells)
    table.add_section()
    ends = []
    for simulation in found.values():
        lifetime = simulation.lifetime
        ends += [f"{lifetime.mean:.1f} ± {lifetime.interval[1] - lifetime.mean:.1f}", ""]
    table.add_row("until 0", *ends, style="bold")
    return table
