"""Draws the pictures of the page "Choosing shards, slices and budget": `python docs/draw_plans.py`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from lightning_s3t.plan import (
    SCENARIOS,
    compare,
    cyclic,
    frontier,
    limit_share,
    plan_sequences,
    requests_until,
    rotation_share,
    simulate,
    steady_states,
)
from lightning_s3t.plan.upkeep.steady_state import quality_by_day
from lightning_s3t.plots import plot_survivors

PICTURES = Path(__file__).parent / "pictures"
SHARDS, SLICES, TRIALS = 5, 6, 20_000
ROWS = 50_000


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


def draw_levels() -> None:
    """What a shard serves by its requests, and how many requests a plan stands until each level."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = range(11)
    left.plot(looks, [100 * limit_share(look) for look in looks], "k--", label="H(r)/r: ever finer slices")
    for slices in (12, 4):
        shares = [100 * rotation_share(slices, look) for look in looks]
        left.plot(looks, shares, "o-", markersize=3, label=f"all rotations of {slices} slices")
    left.plot(looks, [100 * limit_share(look, rotations=False) for look in looks], "k:", label="1/(r+1): SISA")
    left.set_xlabel("requests to one shard, r")
    left.set_ylabel("its slices in use, %")
    left.set_ylim(0, 102)
    stores = ((5, 4, 1), (5, 4, 4), (5, 12, 12), (20, 4, 4), (20, 12, 12))
    levels = {0.75: "75 % of the data", 0.5: "50 %", 1e-6: "nothing (deletion rate)"}
    for number, (level, label) in enumerate(levels.items()):
        found = [requests_until(shards, cyclic(slices, budget), [level])[0] for shards, slices, budget in stores]
        places = [place + 0.26 * (number - 1) for place in range(len(stores))]
        right.bar(places, [one.requests.mean for one in found], width=0.26, label=label)
    right.set_yscale("log")
    right.set_xticks(range(len(stores)), [f"{m}, {slices}, {budget}" for m, slices, budget in stores])
    right.set_xlabel("m, L, B")
    right.set_ylabel("requests until less serves than")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(PICTURES / "levels.png", dpi=130)


def draw_years() -> None:
    """What serves day by day, and what it costs to keep it up."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    family = plan_sequences("optimal", 4, 4)
    for name in ("quiet", "typical", "spike", "consumer"):
        course = quality_by_day(5, family, ROWS, SCENARIOS[name], refit_days=30, years=120 / 365, trials=400)
        left.plot(100 * course.quality.mean(axis=0), label=name)
    left.set_ylim(0, 102)
    left.set_xlabel("day")
    left.set_ylabel("of a full store serves, %")
    left.set_title("m=5, L=B=4, a fit every 30 days", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    found = frontier(steady_states(ROWS, SCENARIOS["typical"], [1, 7, 30, 90], epochs=["sisa"]))
    for shards in (5, 10, 20):
        kept = [one for one in found if one.shards == shards]
        right.plot(
            [one.upkeep.compute for one in kept],
            [100 * one.low for one in kept],
            "o-",
            markersize=3,
            label=f"m={shards}",
        )
    right.set_xscale("log")
    right.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    right.minorticks_off()
    right.set_xlabel("compute of the fits a year, full fine-tunes")
    right.set_ylabel("serves on 95 of 100 days, %")
    right.set_title("typical; L, B and days between fits vary", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(PICTURES / "years.png", dpi=130)


if __name__ == "__main__":
    draw_survivors()
    draw_budgets()
    draw_priors()
    draw_levels()
    draw_years()
