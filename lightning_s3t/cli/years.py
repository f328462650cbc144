"""The part of the command `plan` for years of operation: the quality and the cost of fits under ongoing requests."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_s3t.plan import DataMode, EpochRule, SteadyState
    from lightning_s3t.plan.worth import Worth

ScenarioName = Literal["quiet", "typical", "consumer", "spike", "batch45", "agents"]
DAYS = {"d": 1, "w": 7}


@dataclass(frozen=True)
class Fixed:
    """The caller's choices; for each None, several values are tried.

    Attributes:
        shards: Number of shards, m.
        slices: Number of slices, L.
        budget: Number of sequences, B.
        epochs: The epoch rule.
        groups: Most layer groups that the network has.
        data: The data of a stage.
    """

    shards: int | None
    slices: int | None
    budget: int | None
    epochs: EpochRule | None
    groups: int | None
    data: DataMode


def show_years(
    rows: int,
    scenario: ScenarioName,
    refits: Sequence[str],
    years: float,
    fixed: Fixed,
    quality: float,
    worth: Worth,
    sharding: float,
    seed: int,
    json: bool,
) -> None:
    """Try several stores for some years, and show the ones worth choosing from.

    Args:
        rows: Number of people who may ask.
        scenario: How requests arrive.
        refits: The times between fits.
        years: Number of years.
        fixed: The caller's choices.
        quality: The quality that should be served.
        worth: The worth of a shard.
        sharding: The loss of quality for each doubling of the shards.
        seed: Seed of the random draws.
        json: Print a JSON document.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    from lightning_s3t.plan import SCENARIOS, cheapest, frontier, steady_states
    from lightning_s3t.plan.upkeep.choices import BUDGETS, EPOCHS, SHARDS, SLICES

    if not 0 < quality <= 1:
        raise ConfigurationError(f"Expected --quality to be above 0 and at most 1 but got {quality}.")
    if not refits:
        raise ConfigurationError("Found --refit without a period. Expected one or several, such as 7d or 4w, or never.")
    found = steady_states(
        rows,
        SCENARIOS[scenario],
        [_days(text) for text in refits],
        years,
        SHARDS if fixed.shards is None else [fixed.shards],
        SLICES if fixed.slices is None else [fixed.slices],
        BUDGETS if fixed.budget is None else [fixed.budget],
        EPOCHS if fixed.epochs is None else [fixed.epochs],
        wanted=quality,
        worth=worth,
        sharding=sharding,
        data=fixed.data,
        groups=fixed.groups,
        seed=seed,
    )
    best = cheapest(found, quality)
    if json:
        print(json_format.dumps(_document(found, best, scenario, rows, quality), indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(frontier(found), best, quality, years))
    console.print(_summary(found[0], best, quality))


def _days(text: str) -> int | None:
    if text == "never":
        return None
    match = re.fullmatch(r"([1-9][0-9]*)([dw])", text)
    if match is None:
        raise ConfigurationError(f"Expected --refit to be a period such as 7d or 4w, or never, but got {text!r}.")
    return int(match[1]) * DAYS[match[2]]


def _document(
    found: Sequence[SteadyState], best: SteadyState | None, scenario: str, rows: int, quality: float
) -> dict[str, Any]:
    stores = [
        {"slices": one.slices, "budget": len(one.sequences), **asdict(one), "compute": one.compute} for one in found
    ]
    number = None if best is None else found.index(best)
    return {"scenario": scenario, "rows": rows, "wanted": quality, "cheapest": number, "stores": stores}


def _table(found: Sequence[SteadyState], best: SteadyState | None, quality: float, years: float) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    caption = (
        f"serves: mean over {years:g} years, where a full store is 100 %; 95 % of days: at least this much serves; "
        f"days below: days per year on which less than {quality:.0%} serves. First fit and fits a year: compute, in "
        "multiples of one full fine-tune. Settings that cost more and serve no better are left out."
    )
    table = Table(caption=caption, box=SIMPLE, padding=(0, 0, 0, 1), show_edge=False)
    served = ("serves", "95 %\nof days", "days\nbelow")
    for name in ("shards", "slices", "budget", "epochs", "refit\ndays", *served, "first\nfit", "fits a\nyear"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            str(one.shards),
            str(one.slices),
            str(len(one.sequences)),
            one.epochs,
            "never" if one.refit_days is None else str(one.refit_days),
            f"{one.quality.mean:.1%}",
            f"{one.low:.0%}",
            f"{one.days_below:.0f}",
            f"{one.first_fit.compute:.1f}",
            f"{one.upkeep.compute:.1f}",
            style="bold green" if one is best else "",
        )
    return table


def _summary(one: SteadyState, best: SteadyState | None, quality: float) -> str:
    text = f"{one.requests:.0f} requests per year."
    if best is None:
        return f"{text} None of these serves {quality:.0%} on 95 of 100 days: fit more often, or use more shards."
    return (
        f"{text} The cheapest that serves {quality:.0%} on 95 of 100 days: {best.shards} shards, {best.slices} "
        f"slices, a budget of {len(best.sequences)}, epochs {best.epochs}. More shards always cost less training "
        "here. Set --sharding to what they cost in accuracy. Each shard also has to answer every query."
    )
