"""A comparison as tables: the accuracy and cost of methods, and where each is overtaken."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_s3t.columns import align, counted
from lightning_s3t.comparison.results import Estimate, MethodResult, Setting, overtaken

_Table = tuple[str, Sequence[Sequence[str]]]
_NOTHING = "-"


def plain(setting: Setting, methods: Sequence[MethodResult]) -> str:
    """Return a comparison as text in columns.

    Args:
        setting: The common setting of the methods.
        methods: The results.
    """
    parts = [f"{title}\n\n{align(rows, numbers_from=len(rows[0]))}" for title, rows in _tables(setting, methods)]
    return "\n\n".join([*parts, *_notes(setting, methods)])


def markdown(setting: Setting, methods: Sequence[MethodResult]) -> str:
    """Return a comparison in Markdown.

    Args:
        setting: The common setting of the methods.
        methods: The results.
    """
    parts = []
    for title, rows in _tables(setting, methods):
        head, *body = ["| " + " | ".join(row) + " |" for row in rows]
        parts.append("\n".join([f"**{title}**", "", head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body]))
    return "\n\n".join([*parts, *_notes(setting, methods)]) + "\n"


def _tables(setting: Setting, methods: Sequence[MethodResult]) -> list[_Table]:
    return [
        ("Accuracy and forgetting", _worth(setting, methods)),
        ("Cost", _costs(methods)),
        (
            "Which method stays ahead until the end, and from which request on (accuracy on test rows)",
            _overtaken(methods),
        ),
    ]


def _worth(setting: Setting, methods: Sequence[MethodResult]) -> list[list[str]]:
    last = setting.measured_after[-1]
    attacks = ["U-LiRA", "RMIA"] if setting.thorough else []
    rows = [
        [
            "method",
            "guarantee",
            *(f"test, {number}" for number in setting.measured_after),
            f"test gap, {last}",
            f"forgotten gap, {last}",
            "attack, 0",
            f"attack, {last}",
            *attacks,
            "relearn steps",
        ]
    ]
    for one in methods:
        first, moment = one.after(0), one.after(last)
        rows.append(
            [
                one.label,
                one.guarantee,
                *(_percent(after.test if (after := one.after(n)) else None) for n in setting.measured_after),
                _points(moment.test_gap if moment else None),
                _points(moment.forgotten_gap if moment else None),
                _auc(first.attack_auc if first else None),
                _auc(moment.attack_auc if moment else None),
                *((_auc(one.u_lira), _auc(one.rmia)) if setting.thorough else ()),
                _relearning(one),
            ]
        )
    return rows


def _costs(methods: Sequence[MethodResult]) -> list[list[str]]:
    rows = [
        [
            "method",
            "carried out",
            "a request needs",
            "first fit",
            "cost",
            "a request",
            "a job",
            "fit after all",
            "test then",
            "memory",
            "storage",
            "lasts",
        ]
    ]
    for one in methods:
        jobs = [moment.job_seconds for moment in one.moments if moment.job_seconds is not None]
        rows.append(
            [
                one.label,
                "by a fit" if one.response == "replace" else "at once",
                ", ".join(one.needs) or "nothing",
                _seconds(one.fit_seconds),
                f"{one.fit_cost:.1f}" if one.fit_cost is not None else _NOTHING,
                _seconds(one.request_seconds),
                " / ".join(map(_seconds, jobs)) or "none",
                _seconds(one.refit_seconds),
                _percent(one.refit_test),
                _bytes(one.device_memory_bytes if one.device_memory_bytes is not None else one.memory_bytes),
                _bytes(one.storage_bytes),
                f"{one.lasted} requests" if one.lasted is not None else "to the end",
            ]
        )
    return rows


def _overtaken(methods: Sequence[MethodResult]) -> list[list[str]]:
    rows = [["method", "ahead of it"]]
    for one in methods:
        ahead = sorted(overtaken(methods, one.label).items(), key=lambda item: item[1])
        rows.append([one.label, ", ".join(f"{label} ({since})" for label, since in ahead) or "none"])
    return rows


def _notes(setting: Setting, methods: Sequence[MethodResult]) -> list[str]:
    over = "seeds" if len(setting.seeds) > 1 else "rows"
    seeds = f"{counted(len(setting.seeds), 'seed')}; intervals are over {over} (95 %)"
    steps = ", ".join(map(str, setting.measured_after))
    notes = [
        f"{setting.subjects} subjects with {setting.rows} rows; {setting.measured_after[-1]} of them ask to be "
        f"forgotten, one after the other, with {setting.forgotten_rows} rows. {setting.test_rows} test rows. {seeds}. "
        f"{setting.device}, {setting.cores} cores.",
        f"Numbers after a comma are requests. Gaps are to {methods[0].label!r} after the same requests, in points. "
        "attack: AUC of a loss threshold that tells rows of those who asked from test rows; before the first request "
        f"it says how much there was to find; the best value is that of {methods[0].label!r}. Methods that a fit "
        f"carries out have one job for all requests since the last of {steps}, not one per request; a job is the time "
        f"that each took. cost: CPU time of the first fit as a multiple of {methods[0].label!r}.",
    ]
    notes += [f"{one.label} did not finish: {one.refused}" for one in methods if one.refused]
    return notes


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f} %" if share is not None else _NOTHING


def _points(gap: Estimate | None) -> str:
    if gap is None:
        return _NOTHING
    return f"{100 * gap.value:+.1f} [{100 * gap.lower:+.1f}, {100 * gap.upper:+.1f}]"


def _auc(found: Estimate | None) -> str:
    return f"{found.value:.2f} [{found.lower:.2f}, {found.upper:.2f}]" if found is not None else _NOTHING


def _relearning(one: MethodResult) -> str:
    if one.relearn_steps is None or one.relearned is None:
        return _NOTHING
    return f"{'> ' if one.relearned < 1 else ''}{one.relearn_steps:.0f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _bytes(count: int | None) -> str:
    if count is None:
        return _NOTHING
    return f"{count / 2**20:.1f} MB" if count < 2**30 else f"{count / 2**30:.2f} GB"
