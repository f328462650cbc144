"""The command `s3t store status`: the state of a store, as a grid, as a picture, or as JSON."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s3t.columns import counted, printable
from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_s3t.store import Overview

_MARKS = {
    "serves": "[bold green]●[/]",
    "alive": "[green]○[/]",
    "aside": "[yellow]◌[/]",
    "revoked": "[red]✕[/]",
    "missing": "[dim]·[/]",
}
_LABELS = {"missing": "not trained yet", "aside": "set aside"}


def _describe_fit(fit: Mapping[str, Any]) -> str:
    """Return the findings of the last fit, in a few sentences."""
    found = [f"The last fit, at {fit['at']}, found {fit['rows']} rows of {fit['subjects']} subjects"]
    left_out = [f"{fit[why]} of them {why}" for why in ("forgotten", "restricted") if fit.get(why)]
    found.append(f", {' and '.join(left_out)} and left out." if left_out else ".")
    if fit["other_subjects"]:
        found.append(f" The slices of {fit['other_subjects']} units had other subjects than before.")
    if fit["other_rows"]:
        found.append(f" In {fit['other_rows']} units, rows had changed under the same ids.")
    if fit["other_state"]:
        found.append(f" Different from what the fit before had found: {fit['other_state']}.")
    if not fit["digest_rows"]:
        found.append(" The contents of rows are not compared; S3T(digest_rows=True) compares them.")
    return "".join(found)


def _grid(title: str, found: Overview) -> Table:
    """Return the units, with a row for each shard and a column for each sequence."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("shard", justify="right")
    for sequence in found.sequences:
        table.add_column("-".join(map(str, sequence)), justify="center")
    for shard, row in enumerate(found.states):
        table.add_row(str(shard), *("".join(_MARKS[state] for state in cell) for cell in row))
    return table


def status(store: Path, /, *, plot: Path | None = None, json: bool = False) -> None:
    """Show the state of a store: the stages of each shard, the serving units, how long they last, when to train again.

    Args:
        store: The store's folder.
        plot: Write the grid to this picture (PNG, PDF or SVG).
        json: Print it as a JSON document.
    """
    from lightning_s3t.store import Store

    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigurationError(
            f"The format of the picture {plot} is unknown. Expected a name that ends in .png, .pdf or .svg."
        )
    with Store.open(store) as opened:
        found = opened.status()
    if plot is not None:
        from lightning_s3t.plots import plot_store

        plot_store(found).savefig(plot, dpi=130)
    if json:
        serving = {str(shard): str(unit) for shard, unit in found.serving.items()}
        lasts = {} if found.has_units else {"capacity": None, "full_capacity": None}  # JSON has no infinity
        print(json_format.dumps({**asdict(found), **lasts, "serving": serving, "advice": found.advice}, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if found.has_units:
        console.print(_grid(f"Store {escape(str(store))}", found))
        console.print(", ".join(f"{mark} {_LABELS.get(state, state)}" for state, mark in _MARKS.items()))
        console.print(
            f"Requests carried out: {found.requests}. Shards that serve: {len(found.serving)} of {found.shards}."
        )
    else:
        rows = counted(found.floor_rows, "row") if found.floor_rows is not None else "no rows, so nothing answers"
        console.print(
            f"Store {escape(str(store))} has no units: a closed-form head answers, of {rows}. Requests carried out: "
            f"{found.requests}."
        )
    for number, generation in enumerate(found.generations, start=1):
        console.print(
            f"Shard {generation.shard}: generation {number}, {counted(generation.subjects, 'subject')} who came "
            f"together, from {generation.opened} on."
        )
    if found.waiting:
        console.print(
            f"{found.waiting} subjects wait for the next fit to be forgotten. The serving model still has their data "
            "in it."
        )
    if found.corrections:
        console.print(
            f"{found.corrections} subjects wait for the next fit to train on their corrected data. The serving model "
            "still has their old data in it."
        )
    if found.restricted:
        console.print(
            f"{counted(found.restricted, 'subject')} restricted: no fit trains on them. Set aside for them: "
            f"{', '.join(dict.fromkeys(found.set_aside)) or 'no units'}."
        )
    if found.certificate is not None:
        console.print(f"Guarantee of {escape(ascii(found.method))}: {found.certificate}. {found.certificate.statement}")
    elif found.guarantee != "exact":
        console.print(
            f"Guarantee of {escape(ascii(found.method))}: {found.guarantee}. Nothing is proven about the serving model."
        )
    if found.sequences and found.response == "revoke":
        console.print(
            f"Further requests that the store withstands, on average: {found.capacity:.0f}; a full store: "
            f"{found.full_capacity:.0f} (uniform requests)."
        )
    if found.has_units and found.floor_rows is not None:
        console.print(f"The floor answers too: a closed-form head of {counted(found.floor_rows, 'row')}.")
    if found.heads:
        console.print(f"Units that serve with a closed-form head of their own: {', '.join(map(str, found.heads))}.")
    if found.isolation == "none":
        console.print("The units were trained in one process: state in globals and class attributes is not covered.")
    if found.last_fit is not None:
        console.print(escape(printable(_describe_fit(found.last_fit))))
    if found.advice is not None:
        console.print(f"Advice: {found.advice}")
