"""Building closed-form heads: the rows that they lack are read, and their features added, some at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_s3t.columns import counted
from lightning_s3t.core.floor import PRETRAINED, FloorPart, Task
from lightning_s3t.core.units import UnitId
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_training import FeatureTask
from lightning_s3t.errors import RevokedError
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.executors.ranks import on_rank_zero
from lightning_s3t.plan.stage_rules import newest_stages
from lightning_s3t.store import Store
from lightning_s3t.store.heads.feature_sums import FeatureRows
from lightning_s3t.tuning.floor import Floor

Read = Callable[[FeatureTask], Generator[tuple[Task, FeatureRows], None, None]]


class HeadBuilder:
    """Builds the floor, and the closed-form heads on survivors.

    All ranks go through it in step; rank 0 alone has the store. Added rows stay when the fit is interrupted: the next
    fit continues from there.

    Args:
        trainer: The trainer; without a progress bar of its own, nothing is shown.
        fit_store: The store, in a fit.
        data: The training data.
        floor: The settings of the heads' data.
        part: The settings of the floor.
        read: Reads rows in processes of their own, the same on every rank.
    """

    def __init__(
        self, trainer: pl.Trainer, fit_store: FitStore, data: TrainingData, floor: Floor, part: FloorPart, read: Read
    ) -> None:
        self._trainer = trainer
        self._fit_store = fit_store
        self._data = data
        self._floor = floor
        self._part = part
        self._read = read
        self._tags: dict[int, bytes] = {}  # of the rows that the head lacks which is being built; on rank 0

    def build_floor(self) -> None:
        """Add missing rows to the floor, and remove rows that are no longer in the data."""
        self._build(PRETRAINED, "the closed-form head", self._rows(), self._part, 0, (0, {}))

    def build_on(self, serving: Iterable[UnitId], groups: int) -> None:
        """Add missing rows to the heads on survivors: each learns from the rows that its unit was not trained on.

        Args:
            serving: The units that serve. Heads on other units go.
            groups: Number of layer groups.
        """
        units = list(serving)
        on_rank_zero(self._trainer, lambda: self._fit_store.opened.building.keep_heads(units))
        for unit in units:
            try:
                loaded = on_rank_zero(self._trainer, functools.partial(self._load, unit, groups))
                self._build(
                    str(unit), f"the head on unit {unit}", self._rows(unit), self._unit_part, unit.stage, loaded
                )
            except RevokedError:  # its shard serves another unit now, with the head that it was trained with
                continue

    @property
    def _unit_part(self) -> FloorPart:
        """The settings of a head on a unit, which learns only from the input of the linear layer."""
        linear = self._trainer.lightning_module.get_submodule(self._part.layer)
        return self._part.model_copy(update={"layers": (), "width": linear.in_features})

    def fits_the_data(self, store: Store, unit: UnitId | None = None) -> bool:
        """Return whether a head of another store was built from the same rows as the one that is built here.

        Args:
            store: The other store.
            unit: The unit that the head is on; None for the floor.
        """
        data, rows = self._data, self._rows(unit)
        tags = _hash_rows(data, rows, store)
        source = PRETRAINED if unit is None else str(unit)
        return store.has_learned_from(source, [data.subjects[row] for row in rows], [tags[row] for row in rows])

    def _rows(self, unit: UnitId | None = None) -> list[int]:
        """Return the rows for the floor, or for the head on a unit: all that the unit was not trained on."""
        places = self._data.rows_by_place
        found = sorted(row for place in places if unit is None or not unit.reached_by(place) for row in places[place])
        tried: int = self._trainer.fast_dev_run  # type: ignore[attr-defined]
        return found[:tried] if tried else found

    def _build(
        self,
        source: str,
        what: str,
        rows: list[int],
        part: FloorPart,
        stage: int,
        loaded: tuple[int, Mapping[int, dict[str, Tensor]]],
    ) -> None:
        data, (as_of, trained) = self._data, loaded
        wanted = on_rank_zero(self._trainer, lambda: self._find_missing(source, rows))
        if not wanted:
            return
        people = len({data.subjects[row] for row in wanted})
        rank_zero_info(f"S3T: {what} lacks {counted(len(wanted), 'row')} of {counted(people, 'subject')}.")
        task = FeatureTask(wanted, self._floor, part, self._fit_store.start, stage, trained)
        with closing(self._progress(what, len(wanted))) as bar, closing(self._read(task)) as parts:
            for kind, found, features in _whole_subjects(parts, wanted, data):
                on_rank_zero(self._trainer, functools.partial(self._add, source, part, kind, found, features, as_of))
                bar.update(len(found))
        on_rank_zero(self._trainer, lambda: self._complete(source, as_of))

    def _find_missing(self, source: str, rows: list[int]) -> list[int]:
        """Return the rows that a head lacks, all of each subject's in sequence."""
        data, opened = self._data, self._fit_store.opened
        subjects, tags = [data.subjects[row] for row in rows], _hash_rows(data, rows, opened.store)
        loaded_at = self._fit_store.began_at
        missing = opened.building.find_stale_features(source, subjects, [tags[row] for row in rows], loaded_at)
        by_subject: dict[str, list[int]] = {}
        for row, subject in zip(rows, subjects, strict=True):
            if subject in missing:
                by_subject.setdefault(subject, []).append(row)
        wanted = [row for found in by_subject.values() for row in found]
        self._tags = {row: tags[row] for row in wanted}
        return wanted

    def _add(
        self, source: str, part: FloorPart, task: Task, rows: list[int], features: FeatureRows, as_of: int
    ) -> None:
        opened, owners = self._fit_store.opened, [self._data.subjects[row] for row in rows]
        tags = [self._tags[row] for row in rows]
        opened.building.add_features(source, part, task, features, owners, tags, self._fit_store.began_at, as_of)

    def _complete(self, source: str, as_of: int) -> None:
        self._fit_store.opened.building.complete_head(source, self._fit_store.began_at, as_of)

    def _load(self, unit: UnitId, groups: int) -> tuple[int, dict[int, dict[str, Tensor]]]:
        """Return the number of the newest request, and then the tensors that make up a unit, by stage."""
        store, stages = self._fit_store.opened.store, newest_stages(unit.stage, self._data.partition.slices, groups)
        return store.request_number, {stage: store.load(unit.lineage[stage - 1]) for stage in stages}

    def _progress(self, what: str, rows: int) -> Tqdm:
        return Tqdm(
            total=rows,
            desc=what,
            unit="row",
            disable=self._trainer.progress_bar_callback is None or not self._trainer.is_global_zero,
            dynamic_ncols=True,
            mininterval=0.5,
        )


def _whole_subjects(
    parts: Iterable[tuple[Task, FeatureRows]], wanted: list[int], data: TrainingData
) -> Iterator[tuple[Task, list[int], FeatureRows]]:
    """Yield rows in parts that hold all of each subject's, so that none is in the store with some of them."""
    pending: list[FeatureRows] = []
    done = read = 0
    for task, rows in parts:
        pending.append(rows)
        read += len(rows)
        end = read
        if read < len(wanted):  # the subject whose rows may continue
            while end > done and data.subjects[wanted[end - 1]] == data.subjects[wanted[read]]:
                end -= 1
        if end > done:
            features = torch.cat([part.features for part in pending])
            targets = torch.cat([part.targets for part in pending])
            count = end - done
            yield task, wanted[done:end], FeatureRows(features[:count], targets[:count])
            pending, done = [FeatureRows(features[count:], targets[count:])], end


def _hash_rows(data: TrainingData, rows: list[int], store: Store) -> dict[int, bytes]:
    """Return the tag of each row's contents: a keyed digest, or nothing if contents are not compared."""
    if not data.row_digests:
        return dict.fromkeys(rows, b"")
    texts = {row: f"row {data.row_digests[row]}" for row in rows}
    hashes = store.subject_hashes(texts.values())
    return {row: bytes.fromhex(hashes[text])[:16] for row, text in texts.items()}
