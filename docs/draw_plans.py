"""Draws the pictures of the page "Choosing shards, slices and budget": `python docs/draw_plans.py`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lightning_s3t.plan import compare, plan_sequences, simulate
from lightning_s3t.plots import plot_survivors

PICTURES = Path(__file__).parent / "pictures"
SHARDS, SLICES, TRIALS = 5, 6, 20_000


def draw_survivors() -> None:
    """What is left after each number of requests, by planner."""
    plans = {name: plan_sequences(name, SLICES, 3) for name in ("optimal", "cyclic")}
    plans["sisa"] = plan_sequences("sisa", SLICES, 1)
    found = {name: simulate(SHARDS, orders, range(121), TRIALS) for name, orders in plans.items()}
    plot_survivors(found, SHARDS, SLICES).savefig(PICTURES / "survivors.png", dpi=130)


def draw_budgets() -> None:
    """Deletion rate and slices left against what training costs."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for shards, slices in ((5, 4), (5, 6), (5, 12), (10, 6)):
        budgets = [budget for budget in (1, 2, 3, 4, 6, 8, 12) if budget <= 2 * slices]
        found = [compare(shards, slices, budget, ["optimal"], requests=[20])[0] for budget in budgets]
        label = f"m={shards}, L={slices}"
        costs = [one.cost.fine_tunes for one in found]
        left.plot(costs, [one.lifetime for one in found], "o-", markersize=3, label=label)
        right.plot(costs, [100 * one.moments[0].data.mean for one in found], "o-", markersize=3, label=label)
    left.set_ylabel("deletion rate, requests")
    right.set_ylabel("slices in use after 20 requests, %")
    for axes in (left, right):
        axes.set_xlabel("samples trained on, full fine-tunes")
        axes.set_xscale("log")
        axes.set_xticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURES / "budgets.png", dpi=130)


def draw_priors() -> None:
    """What it is worth to know who is likelier to ask."""
    weights = [2.0**-slice_ for slice_ in range(SLICES)]
    prior = [weight / sum(weights) for weight in weights]
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for planner in ("optimal", "bms", "conditional", "cyclic"):
        budgets = range(1, SLICES + 1)
        left = [compare(SHARDS, SLICES, budget, [planner], prior, [20])[0].moments[0].data.mean for budget in budgets]
        axes.plot(budgets, [100 * share for share in left], "o-", label=planner)
    axes.set_xlabel("budget: orders of the slices")
    axes.set_ylabel("slices in use after 20 requests, %")
    axes.set_title("Half of the requests for slice 0, a quarter for slice 1, ...", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    figure.savefig(PICTURES / "priors.png", dpi=130)


if __name__ == "__main__":
    draw_survivors()
    draw_budgets()
    draw_priors()
