"""The command `s3t store audit`: compares surviving units with a training without the forgotten subjects."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_s3t.cli.imports import import_path, see_current_folder
from lightning_s3t.cli.output import output_to_stderr
from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI


def audit(
    store: Path | None = None,
    /,
    *,
    config: list[Path] | None = None,
    model: str | None = None,
    data: str | None = None,
    cli: str | None = None,
    units: list[str] | None = None,
    seed: int = 0,
    trust_config: bool = False,
    json: bool = False,
) -> int:
    """Train surviving units again, without the forgotten subjects, and compare every bit with the serving units.

    Use data without the rows of forgotten subjects: only then does it cover values computed over all rows.

    Args:
        store: The store's folder. If a LightningCLI trained it, the store remembers the config.
        config: The config to use instead, or several, as for fit; with the S3T callback.
        model: The import path of the app's module class (my_app:LitClassifier), if the config does not name a class.
        data: The import path of the app's data module class, if the config does not name a class.
        cli: The import path of the app's own LightningCLI class, if it has one (my_app:MyCLI).
        units: The names of the units to audit (0/2-0), or how many to draw (3). By default all survivors.
        seed: Seed for drawing units.
        trust_config: Run the stored config even if you have not trained with it; a config is code.
        json: Print the report as a JSON document.
    """
    from lightning_s3t.auditing import audit as run_audit

    if (store is None) == (not config):
        raise ConfigurationError("Expected either a store or --config, which say where the script's settings are.")
    with output_to_stderr():  # Lightning's output during a fit is not part of the report
        app = load_app(store, config or [], model, data, cli, trust_config)
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


def load_app(
    store: Path | None,
    configs: list[Path] | None = None,
    model: str | None = None,
    data: str | None = None,
    cli: str | None = None,
    trust_config: bool = False,
) -> LightningCLI:
    """Make the trainer, module and data of an app, as its fit did.

    Args:
        store: The store's folder, which remembers the config; or None.
        configs: The config to use instead, or several.
        model: The import path of the app's module class, if the config does not name a class.
        data: The import path of the app's data module class, if the config does not name a class.
        cli: The import path of the app's own LightningCLI class, if it has one.
        trust_config: Run a remembered config without asking.
    """
    configs = configs or []
    missing = [str(config) for config in configs if not config.is_file()]
    if missing:
        raise ConfigurationError(f"There is no config {', '.join(missing)}. Expected the file that fit was given.")
    see_current_folder()
    from lightning.pytorch.cli import LightningCLI

    from lightning_s3t.cli.lightning import S3TCLI
    from lightning_s3t.cli.stored_config import stored_config

    kind: Any = S3TCLI if store is not None or _has_section(configs) else LightningCLI
    arguments: dict[str, Any] = {"subclass_mode_model": model is None, "subclass_mode_data": data is None}
    if cli is not None:
        kind, arguments = _import(cli, LightningCLI), {}
    if model is not None:
        arguments["model_class"] = _import(model, object)
    if data is not None:
        arguments["datamodule_class"] = _import(data, object)
    with ExitStack() as stack:
        if store is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3t-config-"))
            configs = [Path(folder) / "config.yaml"]
            unnamed = [name for name, given in (("model", model), ("data", data)) if given is None and cli is None]
            configs[0].write_text(stored_config(store, unnamed, trust_config))
        given = [part for config in configs for part in ("--config", str(config))]
        stack.enter_context(warnings.catch_warnings())
        # it warns of arguments that are given both here and on the command line, where they are those of s3t
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        made: LightningCLI = kind(**arguments, run=False, save_config_callback=None, args=given)
    return made


def _has_section(configs: list[Path]) -> bool:
    import yaml

    found = [yaml.safe_load(config.read_text()) for config in configs]
    return any(isinstance(config, dict) and "s3t" in config for config in found)


def _import(path: str, expected: type) -> Any:
    found = import_path(path, "a class, as my_app:LitClassifier")
    if not isinstance(found, type) or not issubclass(found, expected):
        raise ConfigurationError(f"{path} is not a {expected.__name__} class. Expected the import path of one.")
    return found
