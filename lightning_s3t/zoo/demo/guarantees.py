"""The three guarantees, checked live on a smaller store, each with a description of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_s3t import Store
from lightning_s3t.plan import UnitId
from lightning_s3t.zoo.datamodules import OwnedRows
from lightning_s3t.zoo.demo.training import DemoSettings, train_by_slices
from lightning_s3t.zoo.models import ImageClassifier


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Attributes:
        name: The guarantee.
        compared: A description of the comparison.
        holds: Whether it holds.
    """

    name: str
    compared: str
    holds: bool


@dataclass(frozen=True)
class Comparison:
    """The same rows with a person's rows, with noise in their place, and without them.

    Attributes:
        person: The person to be forgotten.
        rows: All rows.
        with_noise: The same, with the person's replaced by noise under wrong labels.
        without: The rows of all other people.
    """

    person: str
    rows: OwnedRows
    with_noise: OwnedRows
    without: OwnedRows

    @classmethod
    def of(cls, rows: OwnedRows, people: int = 40) -> Comparison:
        """Compare with and without the first owner.

        Args:
            rows: Images and labels.
            people: Number of owners whose rows to use, for speed.
        """
        chosen = set(list(dict.fromkeys(rows.owners))[:people])
        some = [(row, owner) for row, owner in zip(rows.rows, rows.owners, strict=True) if owner in chosen]
        person, owners = some[0][1], [owner for _, owner in some]
        generator = torch.Generator().manual_seed(1)
        noise = [(torch.rand(image.shape, generator=generator), (label + 5) % 10) for (image, label), _ in some]
        return cls(
            person,
            OwnedRows([row for row, _ in some], owners),
            OwnedRows([noise[at] if owner == person else row for at, (row, owner) in enumerate(some)], owners),
            OwnedRows([row for row, owner in some if owner != person], [one for one in owners if one != person]),
        )


def check_guarantees(model: ImageClassifier, compared: Comparison, folder: Path, settings: DemoSettings) -> list[Check]:
    """Train small stores on digits and compare them bit by bit.

    Args:
        model: The publicly trained model.
        compared: The rows to train each store on.
        folder: The folder for the stores.
        settings: Sizes and seed; shards, slices, budget and epochs are limited to 2.
    """
    small = replace(settings, shards=2, slices=2, budget=2, epochs=2)
    person = compared.person
    stores = {"with": compared.rows, "with-noise": compared.with_noise, "without": compared.without}
    for name, rows in stores.items():
        train_by_slices(model, rows, folder / name, small)
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
    train_by_slices(model, compared.rows, folder / "with", small)
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
