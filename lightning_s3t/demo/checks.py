"""The three guarantees, checked live on a smaller store, each with what was compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_s3t.demo.data import Rows
from lightning_s3t.demo.model import DigitClassifier
from lightning_s3t.demo.training import DemoSettings, train_by_slices
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Attributes:
        name: The guarantee.
        compared: What was compared, in words and numbers.
        holds: Whether it holds.
    """

    name: str
    compared: str
    holds: bool


def check_guarantees(model: DigitClassifier, rows: Rows, folder: Path, settings: DemoSettings) -> list[Check]:
    """Trains small stores on digits and compares them bit by bit.

    Args:
        model: The publicly trained model.
        rows: The private rows.
        folder: Where the stores go.
        settings: Sizes and seed; shards, slices, budget and epochs are cut to 2.
    """
    small = replace(settings, shards=2, slices=2, budget=2, epochs=2)
    some = rows.of(people=40)
    person = some.owners[0]
    stores = {
        "with": (folder / "with", some),
        "with noise": (folder / "with-noise", some.with_noise_for(person)),
        "without": (folder / "without", some.without(person)),
    }
    for store, data in stores.values():
        train_by_slices(model, data, store, small)
    with Store.open(folder / "with") as opened:
        doomed = {
            record.snapshot: opened.path / "snapshots" / f"{record.snapshot}.safetensors"
            for unit, record in opened.alive().items()
            if unit.reached_by(opened.partition.place(person))
        }
        opened.forget([person])
    with Store.open(folder / "with-noise") as opened:
        opened.forget([person])
    kept, kept_noise = _tensors(folder / "with"), _tensors(folder / "with-noise")
    checks = [
        Check(
            "Non-interference",
            f"{_size(kept)} that serve on, trained with {person}'s rows and with noise in their place",
            bool(kept) and _equal(kept, kept_noise),
        )
    ]
    files = [path for path in (folder / "with").rglob("*") if path.is_file()]
    contents = b"".join(path.read_bytes() for path in files)
    gone = not any(path.exists() for path in doomed.values())
    clean = all(text.encode() not in contents for text in (*doomed, person))
    train_by_slices(model, some, folder / "with", small)
    rebuilt, scratch = _tensors(folder / "with"), _tensors(folder / "without")
    checks.append(
        Check(
            "Rebuild is scratch",
            f"{_size(rebuilt)} after a rebuild, and after a first training that never saw {person}",
            bool(rebuilt) and _equal(rebuilt, scratch),
        )
    )
    checks.append(
        Check(
            "Nothing stays behind",
            f"{len(doomed)} revoked snapshots looked for by name, digest and owner in {len(files)} files, "
            f"{len(contents):,} bytes",
            bool(doomed) and gone and clean,
        )
    )
    return checks


def _tensors(store: Path) -> dict[UnitId, dict[str, Tensor]]:
    with Store.open(store) as opened:
        return {unit: opened.load(unit) for unit in opened.alive()}


def _equal(first: Mapping[UnitId, Mapping[str, Tensor]], second: Mapping[UnitId, Mapping[str, Tensor]]) -> bool:
    return first.keys() == second.keys() and all(
        tensors.keys() == second[unit].keys()
        and all(torch.equal(_bits(tensor), _bits(second[unit][name])) for name, tensor in tensors.items())
        for unit, tensors in first.items()
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _size(units: Mapping[UnitId, Mapping[str, Tensor]]) -> str:
    values = sum(tensor.numel() for tensors in units.values() for tensor in tensors.values())
    return f"{values:,} values of {len(units)} units"
