"""The story of a case: fit, serve, export, forget, fit again; with the three guarantees checked bit for bit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.errors import S3TError
from lightning_s3t.store import Store
from lightning_s3t.tuning.fingerprint import digest_tensors
from tests.ecosystem.cases import SUBJECT, Case, Script, Variant

# units at a time, which changes no bits
PARALLEL = int(os.environ.get("ECOSYSTEM_PARALLEL", "1"))
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def tell(case: Case, folder: Path) -> str:
    """Run a case.

    Args:
        case: The case.
        folder: An empty folder.

    Returns:
        What else was found, for the table.

    Raises:
        AssertionError: It is not what was expected.
    """
    if case.outcome in ("behaves", "warned"):
        case.make(folder)
        return ""
    if case.outcome == "refused":
        _refuse(case, folder)
        return ""
    return _train_and_forget(case.make, folder)


def trainer_of(store: Path, script: Script) -> pl.Trainer:
    arguments = {**QUIET, "max_epochs": 1, "default_root_dir": store.parent, **script.trainer}
    # two stores are compared: what belongs to whom must not follow from a secret of theirs
    defaults = {"shards": 2, "slices": 2, "budget": 1, "subjects": "owners", "partition": "public"}
    defaults["parallel_units"] = 1 if "isolation" in script.s3t or script.trainer.get("fast_dev_run") else PARALLEL
    s3t = S3T(store, **{**defaults, **script.s3t})
    return pl.Trainer(**{**arguments, "callbacks": [*arguments.get("callbacks", []), s3t]})


def fit(store: Path, make: Callable[[Variant], Script], kind: Any = "D") -> Script:
    """Run a script into a store."""
    pl.seed_everything(0, verbose=False)
    script = make(Variant(kind))
    before = _state(script.module)
    data = {"datamodule": script.data} if isinstance(script.data, pl.LightningDataModule) else {}
    if not data and script.data is not None:
        data = {"train_dataloaders": script.data}
    trainer_of(store, script).fit(script.module, **data)
    assert _state(script.module) == before, "the script's module was changed"
    return script


def units(store: Path) -> dict[str, str]:
    """The digests of all units that can serve."""
    with Store.open(store) as opened:
        return {str(unit): found.snapshot for unit, found in opened.candidates().items()}


def _train_and_forget(make: Callable[[Variant], Script], folder: Path) -> str:
    script = fit(folder / "store", make)
    fit(folder / "scratch", make, "without")
    first, scratch = units(folder / "store"), units(folder / "scratch")
    pl.seed_everything(0, verbose=False)
    fresh = make(Variant("D")).module
    with EnsembleModule.from_store(folder / "store", fresh, **script.serving) as served:
        _ask(served, script)
        exported = _export(served, folder)
        assert served.forget([SUBJECT]).revoked
        if served.survivors:
            _ask(served, script)
    left = units(folder / "store")
    assert left == {unit: scratch[unit] for unit in left}, "a survivor depends on the person's rows"
    revoked = first.keys() - left.keys()
    assert any(first[unit] != scratch[unit] for unit in revoked), "the person's rows make no difference to any unit"
    fit(folder / "store", make)
    assert units(folder / "store") == scratch, "a rebuild is no training from scratch"
    with Store.open(folder / "store") as opened:
        assert opened.verify().passed
    return exported


def _ask(served: EnsembleModule, script: Script) -> None:
    if script.answer is not None:
        with torch.no_grad():
            script.answer(served)
    elif script.test is not None:
        data = {"datamodule": script.test} if isinstance(script.test, pl.LightningDataModule) else {}
        found = pl.Trainer(**QUIET).test(served, **(data or {"dataloaders": script.test}), verbose=False)[0]
        assert found, "nothing was measured"


def _export(served: EnsembleModule, folder: Path) -> str:
    try:
        served.export(folder / "model.safetensors")
    except S3TError as error:
        return f"no plain weights ({type(error).__name__})"
    return ""


def _refuse(case: Case, folder: Path) -> None:
    kind, message = case.error
    with pytest.raises(S3TError, match=f"(?s){message}") as raised:
        fit(folder / "store", case.make)
    assert re.fullmatch(kind, raised.typename), f"{raised.typename}: {raised.value}"
    assert not (folder / "store" / "ledger.db").exists(), "there is a store"


def _state(module: pl.LightningModule) -> Any:
    original = getattr(module, "_orig_mod", module)
    tensors = {
        name: digest_tensors({name: tensor})
        for name, tensor in original.state_dict().items()
        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)
    }
    flags = [(name, parameter.requires_grad) for name, parameter in original.named_parameters()]
    return tensors, flags


def clear(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
