"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_s3t.comparison.results import Estimate, MethodResult, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {"exact": "-", "certified": "-.", "empirical": ":"}


def draw(setting: Setting, methods: Sequence[MethodResult]) -> Figure:
    """Draw accuracy over requests, and the attacks on forgotten rows.

    Args:
        setting: The common setting of the methods.
        methods: The results.

    Returns:
        The figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = ["black", *(palette[number % len(palette)] for number in range(len(methods) - 1))]
    panels = [_draw_accuracy, _draw_loss_attack, *([_draw_shadow_attack] if setting.thorough else [])]
    figure = Figure(figsize=(6 * len(panels), 2.6 + 0.32 * max(8, len(methods))), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), width_ratios=[5, 4, 4][: len(panels)]), panels, strict=True):
        panel(axes, setting, methods, colours)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return figure


def _draw_accuracy(axes: Axes, setting: Setting, methods: Sequence[MethodResult], colours: Sequence[str]) -> None:
    for one, colour in zip(methods, colours, strict=True):
        points = [(moment.requests, 100 * moment.test) for moment in one.moments if moment.test is not None]
        label = f"{one.label} ({one.guarantee})"
        if points:
            axes.plot(*zip(*points, strict=True), _STYLES[one.guarantee], marker="o", color=colour, label=label)
        if one.lasted is not None and points:
            axes.plot(one.lasted, points[-1][1], "x", color=colour, markersize=9)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(setting.measured_after, [str(number) for number in setting.measured_after])
    axes.set_xlabel("deletion requests (x: nothing is left)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Without training from scratch in between")
    axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)


def _draw_loss_attack(axes: Axes, setting: Setting, methods: Sequence[MethodResult], colours: Sequence[str]) -> None:
    last = setting.measured_after[-1]
    for number, (one, colour) in enumerate(zip(methods, colours, strict=True)):
        for moment, inside in ((one.after(0), "white"), (one.after(last), colour)):
            if moment is not None and moment.attack_auc is not None:
                _draw_estimate(axes, moment.attack_auc, number, colour, inside)
    reference = methods[0].after(last)
    if reference is not None and reference.attack_auc is not None:
        axes.axvline(reference.attack_auc.value, color="black", linewidth=0.8)
    _name_rows(axes, methods)
    axes.set_xlabel("AUC of a loss threshold on forgotten rows")
    axes.set_title(f"Before (hollow) and after {last} requests")


def _draw_shadow_attack(axes: Axes, setting: Setting, methods: Sequence[MethodResult], colours: Sequence[str]) -> None:
    for number, (one, colour) in enumerate(zip(methods, colours, strict=True)):
        if one.u_lira is not None:
            _draw_estimate(axes, one.u_lira, number, colour, colour)
    axes.axvline(0.5, color="black", linewidth=0.8)
    _name_rows(axes, methods)
    axes.set_xlabel("AUC of U-LiRA: this model, or a retrained one?")
    axes.set_title(f"With shadow models, after {setting.measured_after[-1]} requests")


def _draw_estimate(axes: Axes, found: Estimate, number: int, colour: str, inside: str) -> None:
    errors = [[max(found.value - found.lower, 0)], [max(found.upper - found.value, 0)]]
    axes.errorbar(found.value, -number, xerr=errors, fmt="o", color=colour, markerfacecolor=inside)


def _name_rows(axes: Axes, methods: Sequence[MethodResult]) -> None:
    axes.set_yticks([-number for number in range(len(methods))], [one.label for one in methods])
    axes.set_ylim(0.5 - len(methods), 0.5)
