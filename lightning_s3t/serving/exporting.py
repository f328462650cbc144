"""Exporting a survivor: its weights or its adapter, with a JSON file that records its origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from lightning_s3t.errors import ConfigurationError, RevokedError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name
from lightning_s3t.store.snapshots.tensors import encode_tensors
from lightning_s3t.tuning.adapter_folder import CONFIG_FILE, TENSORS_FILE, adapter_config, adapter_weights
from lightning_s3t.tuning.merged_weights import merged_weights
from lightning_s3t.tuning.stages import StageBuilder

ExportForm = Literal["weights", "adapter"]


@dataclass(frozen=True)
class ExportedSurvivor:
    """A survivor that was exported.

    Attributes:
        name: The name of the copy, which the receipt of a request that reaches it lists.
        unit: The unit that it was made from.
        path: The file of the weights, or the adapter's folder.
        provenance: The JSON file that records its origin.
    """

    name: str
    unit: UnitId
    path: Path
    provenance: Path


@dataclass(frozen=True)
class ExportPlace:
    """The target of an export.

    Attributes:
        form: The form of the export.
        path: The file of the weights, or the adapter's folder.
        provenance: The JSON file.
    """

    form: ExportForm
    path: Path
    provenance: Path


def place_of(path: Path, form: ExportForm, shard: int | None) -> ExportPlace:
    """Return where a survivor goes.

    Args:
        path: The user's path.
        form: The form of the export.
        shard: The shard, where each is exported.

    Raises:
        ConfigurationError: The form is unknown, or the path is not that of a safetensors file.

    Example:
        >>> place_of(Path("out"), "weights", 1).path.as_posix(), place_of(Path("out"), "adapter", None).path.as_posix()
        ('out/shard-1.safetensors', 'out')
    """
    if form not in get_args(ExportForm):
        raise ConfigurationError(f"Expected argument `form` to be one of {get_args(ExportForm)} but got {form!r}.")
    if form == "adapter":
        folder = path if shard is None else path / f"shard-{shard}"
        return ExportPlace(form, folder, folder / "s3t.json")
    file = path if shard is None else path / f"shard-{shard}.safetensors"
    if file.suffix != ".safetensors":
        raise ConfigurationError(f"Expected the path of the weights to end in .safetensors but got {str(path)!r}.")
    return ExportPlace(form, file, file.with_suffix(".json"))


def export_survivor(
    store: Store,
    builder: StageBuilder,
    unit: UnitId,
    digests: Sequence[str],
    stand_ins: Mapping[str, nn.Module],
    place: ExportPlace,
) -> ExportedSurvivor:
    """Write a survivor's files, which are registered in the store before they have contents.

    Args:
        store: The store.
        builder: The builder of the survivor's modules.
        unit: The survivor.
        digests: Those of the snapshots of its lineage that it serves with.
        stand_ins: Its modules, by the path of the module that each replaces.
        place: The target.
    """
    name = make_export_name(unit)
    if place.form == "adapter":
        files = {
            place.path / CONFIG_FILE: adapter_config(builder, stand_ins),
            place.path / TENSORS_FILE: encode_tensors(adapter_weights(builder, stand_ins), lightning_s3t=name),
        }
    else:
        files = {place.path: encode_tensors(merged_weights(builder.root, stand_ins), lightning_s3t=name)}
    document = _document(store, name, unit, place.form, files)
    files[place.provenance] = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    place.provenance.parent.mkdir(parents=True, exist_ok=True)
    store.export(name, unit, digests, files)
    return ExportedSurvivor(name, unit, place.path, place.provenance)


def _document(store: Store, name: str, unit: UnitId, form: ExportForm, files: Mapping[Path, bytes]) -> dict[str, Any]:
    alive = store.alive()
    if unit not in alive:
        raise RevokedError(f"Unit {unit} was revoked while it was exported, and nothing was written. Export again.")
    return {
        "name": name,
        "form": form,
        "unit": str(unit),
        "shards": store.partition.all_shards,
        "score": alive[unit].score,
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "requests_carried_out": store.request_number,
        "method": store.manifest.method.name,
        "guarantee": store.manifest.method.guarantee,
        "isolation": store.manifest.isolation,
        "files": {path.name: hashlib.sha256(data).hexdigest() for path, data in files.items()},
        "note": (
            "One shard's model, not the ensemble. A deletion request that reaches it erases these files, and its "
            "receipt lists the name above: remove every copy of them then."
        ),
        "made_from": [alive[ancestor].provenance for ancestor in unit.lineage],
    }
