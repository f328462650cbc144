"""The argument `worth` of the command line: the worth of a shard by its serving slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_s3t.plan.worth import Worth


def read_worth(name: str) -> Worth:
    """Returns a worth by its name, or that of the scores of a store's units.

    Args:
        name: "data", one of the paper's curves, or a store's folder.

    Raises:
        ConfigurationError: The value is not one of these, or the store does not have scores at full depth.
    """
    from lightning_s3t.plan import DATA, PAPER_CURVES

    if name == "data":
        return DATA
    if name in PAPER_CURVES:
        return PAPER_CURVES[name]
    if not Path(name).is_dir():
        raise ConfigurationError(
            f"There is no worth {name!r}. Expected 'data', the folder of a store, or one of {', '.join(PAPER_CURVES)}."
        )
    return _of_store(Path(name))


def _of_store(path: Path) -> Worth:
    from lightning_s3t.plan import Worth
    from lightning_s3t.store import Store

    with Store.open(path, forget_due=False) as store:
        slices = store.status().slices
        by_stage: dict[int, list[float]] = {}
        for unit, record in store.alive().items():
            if record.score is not None:
                by_stage.setdefault(unit.stage, []).append(record.score)
    return Worth.of_scores({stage: sum(scores) / len(scores) for stage, scores in by_stage.items()}, slices)
