"""The commands of Lightning: fit with S3T; validate, test and predict with the ensemble."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_s3t.callbacks import S3T
from lightning_s3t.cli.imports import see_current_folder
from lightning_s3t.cli.stored_config import TRUST, stored_config
from lightning_s3t.serving.module import EnsembleModule

RAY_ADDRESS = "RAY_ADDRESS"  # Ray's own
DESCRIPTION = "Train any LightningModule slice by slice, so that data can be removed from it exactly."


class S3TCLI(LightningCLI):
    """A LightningCLI whose trainer has the S3T callback, and whose model is the ensemble, except for training.

    The callback's arguments have their own section, `--s3t.shards=5`, and so do the settings of serving:
    `--serving.aggregate=vote`.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callback's arguments, and those of serving.

        Args:
            parser: The parser of a subcommand.
        """
        parser.add_lightning_class_args(S3T, "s3t")
        # both for every command, since one config file serves all of them
        parser.add_argument(
            "--ray",
            type=str | None,
            help="The address of a Ray cluster whose machines train the units of `fit`, HOST:PORT; 'auto' for the one "
            "that this machine belongs to. Implies --s3t.executor=ray.",
        )
        parser.add_method_arguments(EnsembleModule, "from_store", "serving", skip={"store", "module"})

    def before_instantiate_classes(self) -> None:
        """Called before the callback is made: gives it the cluster."""
        config = self.config if self.subcommand is None else self.config[str(self.subcommand)]
        if config["ray"] is not None:
            config["s3t"]["executor"] = "ray"
            os.environ[RAY_ADDRESS] = config["ray"]

    def before_validate(self) -> None:
        """Called before validation: the ensemble replaces the model."""
        self._serve()

    def before_test(self) -> None:
        """Called before the test: the ensemble replaces the model."""
        self._serve()

    def before_predict(self) -> None:
        """Called before predictions: the ensemble replaces the model."""
        self._serve()
        if not any(isinstance(callback, BasePredictionWriter) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            warnings.warn(
                "The predictions are not written to a file: the config has no BasePredictionWriter among the "
                "trainer's callbacks. Add one: --trainer.callbacks+=my_app.WritePredictions.",
                stacklevel=2,
            )

    def _serve(self) -> None:
        s3t = next(callback for callback in self.trainer.callbacks if isinstance(callback, S3T))  # type: ignore[attr-defined]
        serving = self.config[str(self.subcommand)]["serving"]
        self.model = EnsembleModule.from_store(s3t.store, self.model, **serving)


class SaveConfig(SaveConfigCallback):
    """Saves the config next to the logs. The store remembers it too, so that without a logger no file is written."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run begins: saves the config, if there are logs."""
        if trainer.logger is not None:
            super().setup(trainer, pl_module, stage)


def run_lightning(arguments: Sequence[str]) -> None:
    """Run a command of Lightning.

    `--store PATH` uses the config that the store was trained with; `--trust-config` allows running it regardless of who
    made it.

    Args:
        arguments: The command ("fit", "validate", "test" or "predict") and LightningCLI's arguments.

    Raises:
        StoreError: `--store` does not name a store, or the store does not have a config.
        ConfigurationError: Running the config was not allowed.
    """
    see_current_folder()
    with ExitStack() as stack:
        stack.enter_context(_ray_address_restored())
        given = list(arguments)
        if "--store" in given[1:-1]:
            at = given.index("--store")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3t-config-")))
            config = folder / "config.yaml"
            config.write_text(stored_config(Path(given[at + 1]), trust_config=TRUST in given))
            given[at : at + 2] = ["--config", str(config)]
            given = [option for option in given if option != TRUST]
        stack.enter_context(warnings.catch_warnings())
        # it warns about arguments that are given both here and on the command line, which are the same
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        S3TCLI(
            args=given,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "s3t", "description": DESCRIPTION},
        )


@contextmanager
def _ray_address_restored() -> Iterator[None]:
    before = os.environ.get(RAY_ADDRESS)
    try:
        yield
    finally:
        os.environ.pop(RAY_ADDRESS, None)
        if before is not None:
            os.environ[RAY_ADDRESS] = before
