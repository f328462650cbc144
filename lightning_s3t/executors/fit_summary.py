"""The summary of a fit: a table with one line per shard, and S3T's arguments for the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_s3t.columns import align, counted
from lightning_s3t.plan import SliceSequence, UnitId, survivors, units_of
from lightning_s3t.store import UnitRecord


@dataclass(frozen=True)
class ShardSummary:
    """A line of the summary.

    Attributes:
        shard: Counted from 0.
        trained: Number of units that this fit has trained.
        alive: Number of units in the store.
        units: The planned number of units.
        serves: The unit that serves, or None.
        score: The metric that the script monitors for that unit, where higher is better; None without one.
    """

    shard: int
    trained: int
    alive: int
    units: int
    serves: UnitId | None
    score: float | None


@dataclass(frozen=True)
class FitSummary:
    """The summary of a fit.

    Attributes:
        rows: One for each shard; none if the method trains no units.
        seconds: Its duration.
        passed_over: Units that could not be trained on the remaining rows, or that have rows that were corrected after
            loading, with the reasons.
        out_of_time: Whether its time budget ended it before all units were trained.
    """

    rows: tuple[ShardSummary, ...]
    seconds: float
    passed_over: Mapping[UnitId, str] = field(default_factory=dict)
    out_of_time: bool = False

    @classmethod
    def of(
        cls,
        alive: Mapping[UnitId, UnitRecord],
        shards: int,
        sequences: Iterable[SliceSequence],
        trained: Iterable[UnitId],
        seconds: float,
        passed_over: Mapping[UnitId, str],
        out_of_time: bool = False,
    ) -> FitSummary:
        """Summarise a fit.

        Args:
            alive: The units in the store.
            shards: Number of shards.
            sequences: The sequences.
            trained: The units that this fit has trained.
            seconds: Its duration.
            passed_over: Units that could not be trained, with the reasons.
            out_of_time: Whether the time budget ended the fit.
        """
        wanted, built = units_of(shards, sequences), set(trained)
        best = survivors(alive, {unit: record.score for unit, record in alive.items()})
        rows = []
        for shard in range(shards):
            mine = [unit for unit in wanted if unit.shard == shard]
            serves = best.get(shard)
            rows.append(
                ShardSummary(
                    shard,
                    sum(unit in built for unit in mine),
                    sum(unit in alive for unit in mine),
                    len(mine),
                    serves,
                    alive[serves].score if serves is not None else None,
                )
            )
        return cls(tuple(rows), seconds, dict(passed_over), out_of_time)

    def __str__(self) -> str:
        if not self.rows:
            return "The method trains no units."
        cells = [("shard", "serves", "trained", "units", "score")]
        cells += [
            (
                str(row.shard),
                str(row.serves) if row.serves is not None else "nothing",
                str(row.trained),
                f"{row.alive}/{row.units}",
                f"{row.score:.4f}" if row.score is not None else "",
            )
            for row in self.rows
        ]
        trained = sum(row.trained for row in self.rows)
        passed_over = "".join(f"\nUnit {unit} was skipped: {why}" for unit, why in self.passed_over.items())
        done = f"{counted(trained, 'unit')} trained in {self.seconds:.0f} s."
        return f"{align(cells, numbers_from=2)}\n{done}{passed_over}"


def mean_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the metrics that all units have.

    Args:
        metrics: Those of each unit, by name.

    Example:
        >>> mean_metrics([{"val_loss": 1.0, "lr": 0.1}, {"val_loss": 2.0}])
        {'val_loss': 1.5}
    """
    shared = set.intersection(*(set(found) for found in metrics)) if metrics else set()
    return {name: sum(found[name] for found in metrics) / len(metrics) for name in sorted(shared)}


def hyperparameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return S3T's arguments as loggers show them: flat, next to the module's own.

    Args:
        arguments: By name, nested ones included.

    Example:
        >>> hyperparameters({"shards": 5, "adapter": {"r": 4}, "prior": None})
        {'s3t/shards': 5, 's3t/adapter/r': 4}
    """
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            flat |= {f"s3t/{name}/{key.removeprefix('s3t/')}": inner for key, inner in hyperparameters(value).items()}
        elif value is not None:
            flat[f"s3t/{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
