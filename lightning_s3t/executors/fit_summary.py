"""What a fit has done: a table with a line for each shard, and S3T's arguments for the loggers."""

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
        trained: How many units this fit has trained.
        alive: How many units the store holds.
        units: How many there should be.
        serves: The unit that serves, or None.
        score: What the script monitors, higher being better, for that unit; None without.
    """

    shard: int
    trained: int
    alive: int
    units: int
    serves: UnitId | None
    score: float | None


@dataclass(frozen=True)
class FitSummary:
    """What a fit has done.

    Attributes:
        rows: One for each shard.
        seconds: How long it took.
        passed_over: Units that could not be trained on what deletions have left, or with rows that were corrected after
            they had been loaded, and why.
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
        """Sums a fit up.

        Args:
            alive: What the store holds.
            shards: Number of shards.
            sequences: The sequences.
            trained: What this fit has trained.
            seconds: How long it took.
            passed_over: What could not be trained, and why.
            out_of_time: Whether the time budget ended the fit.
        """
        wanted, built = units_of(shards, sequences), set(trained)
        best = survivors(alive, {unit: record.score for unit, record in alive.items() if record.score is not None})
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
        passed_over = "".join(f"\nUnit {unit} was passed over: {why}" for unit, why in self.passed_over.items())
        done = f"{counted(trained, 'unit')} trained in {self.seconds:.0f} s."
        return f"{align(cells, numbers_from=2)}\n{done}{passed_over}"


def mean_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the means of the metrics that all units have.

    Args:
        metrics: Those of each unit, by name.

    Example:
        >>> mean_metrics([{"val_loss": 1.0, "lr": 0.1}, {"val_loss": 2.0}])
        {'val_loss': 1.5}
    """
    shared = set.intersection(*(set(found) for found in metrics)) if metrics else set()
    return {name: sum(found[name] for found in metrics) / len(metrics) for name in sorted(shared)}


def hyperparameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns S3T's arguments as loggers show them: flat, beside the module's own.

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
