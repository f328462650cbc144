"""Querying a served model: its network's outputs for rows, as the module's own test step calls it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods.editing import logits_of
from lightning_s3t.methods.labels import LabelPlace, labels_of
from lightning_s3t.metrics.functional import logit_score
from lightning_s3t.serving.module import EnsembleModule

_STEPS = {"test": "test_step", "validate": "validation_step"}


@dataclass(frozen=True)
class Call:
    """A call of the network, and the labels of its rows.

    Attributes:
        args: The arguments of the network's call.
        kwargs: Likewise.
        labels: One class a row.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor


@dataclass(frozen=True)
class Answers:
    """A model's outputs for rows, in their order.

    Attributes:
        scores: The logit of the true class's probability, shape `[rows]`.
        correct: Whether the answer is the true class, shape `[rows]`.
    """

    scores: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the rows that are right."""
        return float(self.correct.float().mean())

    def of(self, rows: Tensor) -> Answers:
        """Return the answers to some rows.

        Args:
            rows: Booleans or row numbers.
        """
        return Answers(self.scores[rows], self.correct[rows])


class Asker:
    """Asks served models, by the module's `test_step` (or `validation_step`) and a trainer of its own.

    Args:
        trainer: The script's trainer, whose accelerator and precision are used.
        module: The script's module.
        datamodule: The script's data module, whose hooks move batches to the device.
        labels: The place of the labels in a batch; None to find them.

    Raises:
        UnsupportedError: The module has neither of the steps, or there are several devices.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: pl.LightningDataModule, labels: LabelPlace
    ) -> None:
        own, base = type(module), pl.LightningModule
        runs = [run for run, step in _STEPS.items() if getattr(own, step) is not getattr(base, step)]
        if not runs:
            raise UnsupportedError(
                f"{type(module).__name__} has neither a test_step nor a validation_step, so the comparison does not "
                "know how to query its network. Give it a test_step."
            )
        if trainer.world_size > 1:
            raise UnsupportedError(
                f"A comparison runs on one device, but the trainer has {trainer.world_size}. Use Trainer(devices=1)."
            )
        self._run = runs[0]
        self._trainer = trainer
        self._datamodule = datamodule
        self._labels = labels

    def ask(self, served: EnsembleModule, loader: DataLoader[Any]) -> Answers:
        """Return a model's answers to the rows of a dataloader.

        Args:
            served: The model.
            loader: The rows, in order.

        Raises:
            NoSurvivorError: Nothing serves.
            UnsupportedError: It is not a classifier of rows, or its step does not call the network once.
        """
        scores, correct = [], []
        with self._listening(served) as heard:
            self._go_through(served, loader, heard)
        for call, logits in heard.answers:
            if logits.ndim != 2 or len(logits) != len(call.labels):
                raise UnsupportedError(
                    f"The network returned shape {tuple(logits.shape)} for {len(call.labels)} rows. Expected logits "
                    "of shape [rows, classes]: a comparison needs a classifier."
                )
            scores.append(logit_score(logits, call.labels).cpu())
            correct.append((logits.argmax(-1) == call.labels).cpu())
        found = Answers(torch.cat(scores), torch.cat(correct))
        expected = len(loader.dataset)  # type: ignore[arg-type]
        if len(found.scores) != expected:
            raise ConfigurationError(f"{len(found.scores)} of {expected} rows were answered. Expected all of them.")
        return found

    def record(self, served: EnsembleModule, loader: DataLoader[Any]) -> list[Call]:
        """Return the calls of the network that the rows of a dataloader give.

        Args:
            served: A model that serves.
            loader: The rows.
        """
        with self._listening(served) as heard:
            self._go_through(served, loader, heard)
        return [call for call, _ in heard.answers]

    def _go_through(self, served: EnsembleModule, loader: DataLoader[Any], heard: _Heard) -> None:
        trainer = pl.Trainer(
            accelerator=self._trainer.accelerator,
            devices=1,
            precision=self._trainer.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,  # the recorded outputs are used for training later
            callbacks=[heard],
        )
        data = copy.copy(self._datamodule)
        for name in ("prepare_data", "setup", "teardown"):  # they have run
            setattr(data, name, lambda *_, **__: None)
        for name in ("test_dataloader", "val_dataloader"):
            setattr(data, name, lambda: loader)
        getattr(trainer, self._run)(served, datamodule=data, verbose=False)

    @contextmanager
    def _listening(self, served: EnsembleModule) -> Iterator[_Heard]:
        """Record the network's calls and outputs while the block runs."""
        heard = _Heard(self._labels)
        network = served.module.get_submodule(served.network_path)
        hook = network.register_forward_hook(heard.note, with_kwargs=True)
        try:
            yield heard
        finally:
            hook.remove()


class _Heard(pl.Callback):
    """Notes the calls of a network, and the labels in the batches that they come from."""

    def __init__(self, labels: LabelPlace) -> None:
        self._place = labels
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
        self.answers: list[tuple[Call, Tensor]] = []

    def note(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
        self._calls.append((args, kwargs, logits_of(answer).detach()))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called after a batch: puts its labels to the call of the network."""
        if len(self._calls) != 1:
            raise UnsupportedError(
                f"The module's step called the network {len(self._calls)} times for a batch. Expected one call, as "
                "self(...) or self.network(...), so that its answer is known."
            )
        ((args, kwargs, logits),) = self._calls
        self._calls.clear()
        self.answers.append((Call(args, kwargs, labels_of(batch, self._place)), logits))

    on_validation_batch_end = on_test_batch_end


def rows_loader(like: DataLoader[Any], dataset: Any, rows: Sequence[int]) -> DataLoader[Any]:
    """Return rows of a data set in a given order, collated as in a dataloader.

    Args:
        like: The dataloader.
        dataset: Its data set.
        rows: Row numbers.
    """
    return DataLoader(
        torch.utils.data.Subset(dataset, list(rows)), batch_size=like.batch_size or 32, collate_fn=like.collate_fn
    )
