"""One unit's training: Lightning's own fit loop, as if the unit were all there is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_s3t.callbacks.checkpoint_files import recorded_checkpoints
from lightning_s3t.callbacks.checks import check_optimized
from lightning_s3t.callbacks.lightning_internals import prepare_fit_loop, run_fit_loop
from lightning_s3t.callbacks.provenance import ProvenanceRecorder, score_of
from lightning_s3t.callbacks.training_data import TrainingData
from lightning_s3t.callbacks.unfreezing import SliceUnfreezing
from lightning_s3t.callbacks.unit_settings import UnitSettings
from lightning_s3t.errors import DataError, LeakageError
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.guard import named_tensors
from lightning_s3t.tuning.randomness import seed_all, unit_seed


@dataclass(frozen=True)
class UnitResult:
    """What comes of a unit.

    Attributes:
        tensors: What it owns.
        record: Its provenance, but for who was in its rows.
        score: What the script monitors, higher being better; None without.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]
    score: float | None


class UnitTraining:
    """Trains a unit in this process.

    Args:
        data: The training data.
        unfreezing: Puts the stages in place, attached to the module.
        provenance: Records each unit.
        settings: How units are trained.

    Attributes:
        unit: The unit that is being trained, or None.
        first_step: Where the loggers' step axis stands when it begins.
        note_file: Called with each checkpoint before it is written.
        advance: Called after each batch.
        check_alive: Called before each batch; raises if the unit has been revoked.
    """

    def __init__(
        self,
        data: TrainingData,
        unfreezing: SliceUnfreezing,
        provenance: ProvenanceRecorder,
        settings: UnitSettings,
    ) -> None:
        self._data = data
        self._unfreezing = unfreezing
        self._provenance = provenance
        self._settings = settings
        self.unit: UnitId | None = None
        self.first_step = 0
        self.note_file: Callable[[Path], None] = _nothing
        self.advance: Callable[[pl.Trainer], None] = _nothing
        self.check_alive: Callable[[pl.Trainer], None] = _nothing

    def prepare(self) -> None:
        """Does, once for all units, what would take time in each."""
        self._data.find_generators()

    def train(
        self, trainer: pl.Trainer, unit: UnitId, rows: Sequence[int], trained: Sequence[dict[str, Tensor]]
    ) -> UnitResult:
        """Trains a unit.

        Args:
            trainer: The trainer, as it stood when its fit loop would have begun.
            unit: The unit.
            rows: The rows that it trains on.
            trained: What the units that it stands on own, from stage 1 up.

        Raises:
            LeakageError: It changed what it does not own.
            DataError: It trained on no batch.
        """
        self.unit = unit
        try:
            with recorded_checkpoints(trainer, self.note_file):
                self._train(trainer, unit, rows, trained)
            stage = self._unfreezing.stage
            assert stage is not None
            return UnitResult(stage.snapshot(), self._describe(trainer, unit), score_of(trainer))
        finally:
            self.unit = None

    def seed(self) -> None:
        """Seeds the global generators for the running unit: what came before its first batch must not count."""
        if self.unit is not None:
            seed_all(unit_seed(self._settings.seed, self.unit))

    def _train(
        self, trainer: pl.Trainer, unit: UnitId, rows: Sequence[int], trained: Sequence[dict[str, Tensor]]
    ) -> None:
        seed = unit_seed(self._settings.seed, unit)
        seed_all(seed)
        self._data.seed_generators(seed)
        loader = self._data.unit_loader(rows, seed, trainer.world_size, trainer.global_rank)
        stage = self._unfreezing.enter(unit.stage, trained, seed)
        prepare_fit_loop(trainer, loader, self.first_step, self._settings.max_epochs(trainer.max_epochs))
        self._unfreezing.freeze()
        check_optimized(trainer, stage.trainable)
        self._unfreezing.guard()
        seed_all(seed)
        with _rounding_undone(trainer, stage.owned_names()):
            run_fit_loop(trainer)
        self._check_data(trainer, unit, loader)
        if trainer.global_step == 0:
            raise DataError(
                f"Unit {unit} trained on no batch: {len(rows)} rows, batch size {loader.batch_size}, "
                f"drop_last={loader.drop_last}, max_epochs={trainer.max_epochs}. Expected at least one step: use "
                "fewer shards or slices, a smaller batch, or drop_last=False."
            )
        self._unfreezing.check(f"unit {unit}")

    def _check_data(self, trainer: pl.Trainer, unit: UnitId, loader: DataLoader[Any]) -> None:
        used: Any = trainer.train_dataloader
        if getattr(used, "dataset", None) is not loader.dataset:
            raise LeakageError(
                f"Unit {unit} was trained with another dataloader ({type(used).__name__}) than that of its rows, so it "
                "may have seen anybody's. Something in the script gives the trainer a dataloader of its own while it "
                "trains. Leave that out."
            )

    def _describe(self, trainer: pl.Trainer, unit: UnitId) -> dict[str, Any]:
        record, builder, stage = self._provenance.end(trainer), self._unfreezing.builder, self._unfreezing.stage
        assert builder is not None
        assert stage is not None
        return {
            **record,
            "metrics": {name: value for name, value in record["metrics"].items() if not name.startswith("s3t/")},
            "unit": str(unit),
            "shard": unit.shard,
            "prefix": list(unit.prefix),
            "stage": unit.stage,
            "parent": str(unit.parent) if unit.parent else None,
            "data": self._settings.data,
            "layers": list(builder.layers.groups[unit.stage - 1].modules),
            "head": list(builder.layers.head),
            "parameters": list(stage.trainable),
            "isolation": self._settings.isolation,
            "seed": self._settings.seed,
            "unit_seed": unit_seed(self._settings.seed, unit),
        }


@contextmanager
def _rounding_undone(trainer: pl.Trainer, owned: Collection[str]) -> Iterator[None]:
    """Sets frozen weights back that an average of weights, which was put into the module, differs from by rounding.

    An exponential average of one number, taken as d*a + (1-d)*a, may differ from it in the last bit. What differs by
    more is left for the guard to find.
    """
    if not any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        yield
        return
    frozen = {name: t for name, t in named_tensors(trainer.lightning_module).items() if name not in owned}
    before = {name: tensor.detach().clone() for name, tensor in frozen.items()}
    yield
    with torch.no_grad():
        for name, tensor in frozen.items():
            if not torch.equal(tensor, before[name]) and torch.allclose(tensor, before[name], rtol=1e-4, atol=0.0):
                tensor.copy_(before[name])


def _nothing(_: Any) -> None:
    pass
