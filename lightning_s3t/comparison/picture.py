"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_s3t.comparison.results import MethodResult, Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = {"exact": "-", "certified": "-.", "empirical": ":"}


def draw(setting: Setting, methods: Sequence[MethodResult]) -> Figure:
    """Draw accuracy over requests, and how well forgotten rows are distinguished from test rows before and after.

    Args:
        setting: The common setting of the methods.
        methods: The results.

    Returns:
        The figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.6 + 0.32 * max(8, len(methods))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[5, 4])
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, one in enumerate(methods):
        points = [(moment.requests, 100 * moment.test) for moment in one.moments if moment.test is not None]
        colour = "black" if number == 0 else colours[(number - 1) % len(colours)]
        label = f"{one.label} ({one.guarantee})"
        if points:
            left.plot(*zip(*points, strict=True), _STYLES[one.guarantee], marker="o", color=colour, label=label)
        if one.lasted is not None and points:
            left.plot(one.lasted, points[-1][1], "x", color=colour, markersize=9)
        for moment, filled in ((one.after(0), False), (one.after(setting.measured_after[-1]), True)):
            if moment is not None and moment.attack_auc is not None:
                auc = moment.attack_auc
                errors = [[max(auc.value - auc.lower, 0)], [max(auc.upper - auc.value, 0)]]
                right.errorbar(
                    auc.value,
                    -number,
                    xerr=errors,
                    fmt="o",
                    color=colour,
                    markerfacecolor=colour if filled else "white",
                )
    left.set_xscale("symlog", linthresh=1)
    left.set_xticks(setting.measured_after, [str(number) for number in setting.measured_after])
    left.set_xlabel("deletion requests (x: nothing is left)")
    left.set_ylabel("test accuracy, %")
    left.set_title("Without training from scratch in between")
    left.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    reference = methods[0].after(setting.measured_after[-1])
    if reference is not None and reference.attack_auc is not None:
        right.axvline(reference.attack_auc.value, color="black", linewidth=0.8)
    right.set_yticks([-number for number in range(len(methods))], [one.label for one in methods])
    right.set_xlabel("AUC of a loss threshold on forgotten rows")
    right.set_title(f"Before (hollow) and after {setting.measured_after[-1]} requests")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return figure
