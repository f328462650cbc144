"""The settings of a fit: everything that may influence a unit besides its rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lightning_s3t.engine.lightning_internals import saves_config
from lightning_s3t.engine.sampling import sampling_of
from lightning_s3t.engine.trainer_settings import plain
from lightning_s3t.engine.unit_settings import UnitSettings
from lightning_s3t.methods import UnlearningMethod
from lightning_s3t.plan import Partition
from lightning_s3t.tuning.adapters import describe_adapter
from lightning_s3t.tuning.compiled import describe_compiled
from lightning_s3t.tuning.stages import StageBuilder

# LightningCLI's record of its own start among the hyperparameters, which differs with `s3t store audit`
_OF_CLI = ("_class_path", "_instantiator")


def fit_settings(
    trainer: Mapping[str, Any],
    module: pl.LightningModule,
    builder: StageBuilder,
    loader: DataLoader[Any],
    partition: Partition,
    units: UnitSettings,
    method: UnlearningMethod,
) -> dict[str, Any]:
    """Return everything that may influence a unit besides its rows; a store cannot be opened with different settings.

    Args:
        trainer: Its settings, from `trainer_settings`.
        module: The user's module.
        builder: The builder of its stages.
        loader: The script's train dataloader.
        partition: The partition of the subjects.
        units: The settings of units.
        method: The unlearning method.
    """
    layers, compiled = builder.layers, describe_compiled(module)
    return {
        "partition": partition.settings,
        "method": {
            "name": method.name,
            "guarantee": method.guarantee,
            "response": method.response,
            **({"certified": method.certified.model_dump()} if method.certified is not None else {}),
        },
        "layers": {
            "network": layers.network,
            "groups": [list(group.modules) for group in layers.groups],
            "head": list(layers.head),
        },
        "adapter": describe_adapter(builder.adapter),
        "model": {
            "class": import_path_of(type(module)),
            **builder.describe_model(),
            "hparams": plain({name: value for name, value in module.hparams.items() if name not in _OF_CLI}),
        },
        "training": {
            "data": units.data,
            "epochs": units.epochs,
            # globals, class attributes and locks exist in a forked process, but not in a forkserver's process
            "isolation": units.isolation,
            # another rounding; absent where torch compiles nothing
            **({"compiled": compiled} if compiled else {}),
            "digest_rows": units.digest_rows,
            "batch_size": loader.batch_size,
            "drop_last": loader.drop_last,
            "rows": str(sampling_of(loader)),
            **trainer,
        },
    }


def config_of(trainer: pl.Trainer) -> str | None:
    """Return the config that a LightningCLI has made the trainer from, in YAML; None without one.

    The CLI hands it to the callback that saves it. Classes of the script that runs are named by its module, so that
    another process finds them.

    Args:
        trainer: The trainer.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if saves_config(callback):
            text = str(callback.parser.dump(callback.config, skip_none=False))
            return re.sub(r"(?<=[:-] )__main__\.", f"{_script()}.", text)
    return None


def classes_of(trainer: pl.Trainer) -> dict[str, str]:
    """Return the import paths of a trainer's module and data module, which a config need not name.

    Args:
        trainer: The trainer.
    """
    parts = {"model": trainer.lightning_module, "data": trainer.datamodule}  # type: ignore[attr-defined]
    return {name: import_path_of(type(part)) for name, part in parts.items() if part is not None}


def import_path_of(kind: type) -> str:
    """Return the path that a class can be imported by, in another process too.

    A script's own classes are in `__main__` while it runs, and in a module with the script's name otherwise: `s3t store
    audit` repeats a training of `python app.py fit`.

    Args:
        kind: The class.

    Example:
        >>> import_path_of(StageBuilder)
        'lightning_s3t.tuning.stages.StageBuilder'
    """
    module = _script() if kind.__module__ == "__main__" else kind.__module__
    return f"{module}.{kind.__qualname__}"


def _script() -> str:
    """Return the import name of the running script; "__main__" without one (a notebook)."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m package.app
        return str(spec.name)
    path = getattr(main, "__file__", None)
    return Path(path).stem if path else "__main__"
