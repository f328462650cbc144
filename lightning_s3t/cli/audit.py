"""The verb `audit`: trains surviving units anew, without the forgotten, and compares them bit by bit."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI


def audit(
    *,
    config: list[Path],
    model: str | None = None,
    data: str | None = None,
    cli: str | None = None,
    units: list[str] | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Prove on a store that what serves was never reached by the forgotten: train units anew, and compare the bits.

    Args:
        config: The LightningCLI config that the store was trained with, or several, as for fit; with the S3T callback.
        model: The import path of the app's module class (my_app:LitClassifier), if the config does not name a class.
        data: The import path of the app's data module class, if the config does not name a class.
        cli: The import path of the app's own LightningCLI class, if it has one (my_app:MyCLI).
        units: The names of the units to audit (0/2-0), or how many to draw (3). Without it, all that survive.
        seed: What units are drawn from.
        json: Print the report as a JSON document.
    """
    from lightning_s3t.auditing import audit as run_audit

    app = _load(config, model, data, cli)
    report = run_audit(app.trainer, app.model, datamodule=app.datamodule, units=_units(units), seed=seed)
    if json:
        print(report.to_json())
    else:
        print(report)
    return 0 if report.passed else 1


def _units(units: list[str] | None) -> int | list[str] | Literal["all"]:
    if units is None or units == ["all"]:
        return "all"
    return int(units[0]) if len(units) == 1 and units[0].isdecimal() else units


def _load(configs: list[Path], model: str | None, data: str | None, cli: str | None) -> LightningCLI:
    missing = [str(config) for config in configs if not config.is_file()]
    if missing:
        raise ConfigurationError(f"There is no config {', '.join(missing)}. Expected the file that fit was given.")
    sys.path.insert(0, "")  # the app's own modules, as `python app.py` has them
    from lightning.pytorch.cli import LightningCLI

    kind = _import(cli, LightningCLI) if cli is not None else LightningCLI
    arguments: dict[str, Any] = {}
    if model is not None:
        arguments["model_class"] = _import(model, object)
    if data is not None:
        arguments["datamodule_class"] = _import(data, object)
    given = [part for config in configs for part in ("--config", str(config))]
    made: LightningCLI = kind(**arguments, run=False, save_config_callback=None, args=given)
    return made


def _import(path: str, expected: type) -> Any:
    module, _, name = path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be imported: {error}. Expected the import path of a class, as my_app:LitClassifier."
        ) from error
    if not isinstance(found, type) or not issubclass(found, expected):
        raise ConfigurationError(f"{path} is no {expected.__name__} class. Expected the import path of one.")
    return found
