"""The report: the state and history of a store, on one page without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_s3t.core.receipts import Receipt
from lightning_s3t.core.units import UnitId
from lightning_s3t.plan.outlook import Outlook
from lightning_s3t.reporting.charts import outlook_of, revoked_chart, survival_chart
from lightning_s3t.reporting.pages import page_templates
from lightning_s3t.store import Overview, Store, UnitRecord, Verification
from lightning_s3t.store.keys.identities import KEY_FILE


@dataclass(frozen=True)
class ServingUnit:
    """A unit that serves, with what it was trained on and how well it scored.

    Attributes:
        unit: The unit.
        rows: Number of training rows of its newest stage; None if not recorded.
        epochs: For how many epochs.
        seconds: Training time of its newest stage.
        started: The start of that training (UTC, ISO 8601).
        score: The validation metric for choosing survivors, where higher is better; None without one.
        metrics: The metrics of its last epoch.
    """

    unit: UnitId
    rows: int | None
    epochs: int | None
    seconds: float | None
    started: str | None
    score: float | None
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, unit: UnitId, record: UnitRecord) -> ServingUnit:
        """Read the record of a unit.

        Args:
            unit: The unit.
            record: Its record.
        """
        known = record.provenance
        return cls(
            unit,
            known.get("rows"),
            known.get("epochs"),
            known.get("duration_s"),
            known.get("started"),
            record.score,
            known.get("metrics") or {},
        )


@dataclass(frozen=True)
class StoreReport:
    """The state of a store, its requests, and how long it will last.

    It does not contain ids of people, hashes of ids, or callers' names for requests.

    Attributes:
        overview: The state of the store.
        model: The class of the module that was trained; None if no fit has come yet.
        method: The plan, as pairs of a name and a value.
        receipts: The receipts of all requests, in order.
        forgotten: Number of forgotten people.
        serving: The unit that each shard serves.
        scores: By stage, from 1, the mean score of the units that are alive; None where none has one.
        outlook: The share of the data that serves after further requests; None if requests do not reduce it.
        versions: By package, the versions that units were trained with.
        verification: The result of checking the store; None if it was left out.
        events: Number of events in the store's history.
        key_in_folder: Whether the store's key lies in its folder, and not in the environment.

    Example:
        >>> import tempfile
        >>> settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
        >>> with tempfile.TemporaryDirectory() as folder, Store.create(folder, settings) as store:
        ...     _ = store.forget(["user-1"], strict=False)
        ...     page = StoreReport.of(store).to_html()
        >>> "user-1" in page, "<script" in page
        (False, False)
    """

    overview: Overview
    model: str | None
    method: tuple[tuple[str, str], ...]
    receipts: tuple[Receipt, ...]
    forgotten: int
    serving: tuple[ServingUnit, ...]
    scores: tuple[float | None, ...]
    outlook: Outlook | None
    versions: Mapping[str, tuple[str, ...]]
    verification: Verification | None
    events: int
    key_in_folder: bool

    @classmethod
    def of(cls, store: Store, verify: bool = True) -> StoreReport:
        """Look at a store.

        Args:
            store: The opened store.
            verify: Whether to check its history and read every snapshot, as `Store.verify` does. It takes damaged units
                out of service.
        """
        verification = store.verify() if verify else None
        overview, alive = store.status(), store.alive()
        return cls(
            overview,
            _model_of(store),
            tuple(_plan_of(store, overview).items()),
            tuple(record.receipt for record in store.receipts()),
            store.count_forgotten(),
            # a request may have come in between
            tuple(ServingUnit.of(unit, alive[unit]) for unit in overview.serving.values() if unit in alive),
            tuple(_mean_scores(alive, overview.slices)),
            outlook_of(store, overview),
            _versions_of(alive),
            verification,
            store.count_events(),
            (store.path / KEY_FILE).exists(),
        )

    def to_html(self) -> str:
        """Return the report as one HTML page: no scripts, nothing loaded from elsewhere."""
        return (
            page_templates()
            .get_template("report.html")
            .render(report=self, survival=survival_chart(self.outlook), revoked=revoked_chart(self.receipts))
        )


def _model_of(store: Store) -> str | None:
    model = store.settings.get("model")
    return str(model["class"]) if model else None


def _plan_of(store: Store, overview: Overview) -> dict[str, str]:
    settings = store.settings
    training, adapter = settings.get("training") or {}, settings.get("adapter")
    layers = settings.get("layers")
    of_units = {
        "Shards": str(overview.shards),
        "Slices per shard": str(overview.slices),
        "Sequences per shard": str(len(overview.sequences)),
        "Layer groups": str(len(layers["groups"])) if layers else "not known before the first fit",
        "Adapter": str(adapter.get("peft_type", "PEFT")) if adapter else "none: whole layers are trained",
        "Seed": str(settings["partition"].get("seed")),
        "Epochs by": str(training.get("epochs", "")),
        "Processes": {"none": "one for all units"}.get(overview.isolation, f"one for each unit ({overview.isolation})"),
    }
    found = {
        "Method": overview.method,
        "Guarantee": str(overview.certificate or overview.guarantee),
        **(of_units if overview.has_units else {}),
    }
    return {name: value for name, value in found.items() if value}


def _mean_scores(alive: Mapping[UnitId, UnitRecord], slices: int) -> list[float | None]:
    by_stage: dict[int, list[float]] = {}
    for unit, record in alive.items():
        if record.score is not None:
            by_stage.setdefault(unit.stage, []).append(record.score)
    stages = (by_stage.get(stage) for stage in range(1, slices + 1))
    return [sum(scores) / len(scores) if scores else None for scores in stages]


def _versions_of(alive: Mapping[UnitId, UnitRecord]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for record in alive.values():
        known: Mapping[str, Any] = record.provenance.get("versions") or {}
        for package, version in known.items():
            found.setdefault(package, set()).add(str(version))
    return {package: tuple(sorted(versions)) for package, versions in sorted(found.items())}
