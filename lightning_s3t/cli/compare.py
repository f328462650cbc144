"""The command `s3t compare`: unlearning methods on the same model, data, requests and seeds."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s3t.cli.output import output_to_stderr
from lightning_s3t.columns import printable
from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_s3t.comparison import Comparison

_FILES = (".yaml", ".yml")


def compare(
    *,
    config: list[Path] | None = None,
    model: str | None = None,
    data: str | None = None,
    cli: str | None = None,
    methods: list[str] | None = None,
    requests: int | None = None,
    output: Path = Path("s3t-comparison"),
    measure_after: list[int] | None = None,
    thorough: bool = False,
    seeds: int | None = None,
    quick: bool = False,
    json: bool = False,
) -> None:
    """Compare unlearning methods: their guarantees, their accuracy and their cost.

    Every method is trained, subjects ask to be forgotten one after another, and the serving model is measured next to a
    training from scratch on the remaining data. Finished runs are kept, so that the same command continues after an
    interruption. The tables, the picture and a JSON document go to the output folder.

    Args:
        config: The app's LightningCLI config, or several, as for fit; with the S3T callback. Without one, methods are
            compared on the demo's digits, offline.
        model: The import path of the app's module class (my_app:LitClassifier), if the config does not name a class.
        data: The import path of the app's data module class, if the config does not name a class.
        cli: The import path of the app's own LightningCLI class, if it has one (my_app:MyCLI).
        methods: Names, separated by commas or spaces: s3t,sisa,ssd. Or a YAML file: a list of names or of mappings
            with a name and arguments, or a mapping from labels to these.
        requests: Number of subjects who ask: by default 10, or 100 for the digits.
        output: The folder for finished runs and for the results.
        measure_after: Numbers of requests after which to measure; by default 1, 10, 100, ... and after the last.
        thorough: Train with several seeds, and attack with shadow models; this takes hours.
        seeds: Number of seeds for each method; by default 1, or 8 for a thorough comparison.
        quick: Without a config: tiny sizes, to see all steps quickly; the numbers are then meaningless.
        json: Print the JSON document.
    """
    if config is None and any(given is not None for given in (model, data, cli)):
        raise ConfigurationError("Expected --config together with --model, --data and --cli: the app's settings.")
    if config is not None and quick:
        raise ConfigurationError("Expected --quick without --config: it makes the demo's digits smaller.")
    chosen: Any = _methods(methods) if methods is not None else None
    with ExitStack() as stack:
        stack.enter_context(output_to_stderr())  # the app's own output is not part of the answer
        if config is None:
            import torch

            from lightning_s3t.zoo.demo import make_digits_app

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)  # the model is so small that threads would only wait for each other
            trainer, module, datamodule, own = make_digits_app(quick)
            chosen, asked = chosen or own, 100 if requests is None else requests
        else:
            from lightning_s3t.cli.audit import load_app

            app = load_app(None, config, model, data, cli)
            trainer, module, datamodule = app.trainer, app.model, app.datamodule
            asked = 10 if requests is None else requests
        from lightning_s3t.comparison import compare as run_comparison
        from lightning_s3t.comparison.compare import DEFAULT_METHODS

        try:
            found = run_comparison(
                trainer,
                module,
                datamodule,
                chosen or DEFAULT_METHODS,
                asked,
                output=output,
                thorough=thorough,
                seeds=seeds,
                measure_after=measure_after,
            )
        except KeyboardInterrupt:
            print(f"s3t: finished runs are kept in {output}; run the same command again to continue.", file=sys.stderr)
            raise
    written = _write(found, output)
    print(found.to_json() if json else printable(f"{found}\n\nWritten: {', '.join(map(str, written))}"))


def _write(found: Comparison, output: Path) -> list[Path]:
    from lightning_utilities.core.imports import RequirementCache

    files = [output / "comparison.json", output / "comparison.md"]
    files[0].write_text(found.to_json() + "\n")
    files[1].write_text(found.to_markdown())
    if RequirementCache(module="matplotlib"):
        files.append(output / "comparison.png")
        found.plot().savefig(files[-1], dpi=110)
    return files


def _methods(given: list[str]) -> Any:
    """Return the value of --methods: names, or the contents of a YAML file."""
    if len(given) != 1 or Path(given[0]).suffix not in _FILES:
        return [name for part in given for name in part.split(",") if name]
    import yaml

    path = Path(given[0])
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}. Expected names of methods, or a YAML file of methods.")
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, (list, dict)):
        raise ConfigurationError(
            f"{path} holds {type(found).__name__}. Expected a list of methods, or a mapping of them by label."
        )
    return found
