"""Building the floor of a store: the rows that it lacks are read, and their features added, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_s3t.columns import counted
from lightning_s3t.core.floor import FloorPart, Task
from lightning_s3t.engine.training_data import TrainingData
from lightning_s3t.engine.unit_training import FeatureTask
from lightning_s3t.executors.fit_store import FitStore
from lightning_s3t.store import Store
from lightning_s3t.store.feature_sums import FeatureRows
from lightning_s3t.tuning.floor import Floor

Read = Callable[[FeatureTask], Iterable[tuple[Task, FeatureRows]]]


def build_floor(
    trainer: pl.Trainer, fit_store: FitStore, data: TrainingData, floor: Floor, part: FloorPart, read: Read
) -> None:
    """Add what the floor lacks, and take out what is not in the data any more.

    What is added stays when the fit is interrupted: the next one goes on there.

    Args:
        trainer: The trainer; without a progress bar of its own, nothing is shown.
        fit_store: The store, in a fit.
        data: The training data.
        floor: What the floor learns from.
        part: The layer whose input is taken.
        read: Reads rows in a process of their own.
    """
    building, store = fit_store.opened.building, fit_store.opened.store
    rows = sorted(row for found in data.rows_by_place.values() for row in found)
    subjects = [data.subjects[row] for row in rows]
    tags = _tags(data, rows, store)
    missing = building.find_stale_features(subjects, [tags[row] for row in rows])
    by_subject: dict[str, list[int]] = {}
    for row, subject in zip(rows, subjects, strict=True):
        if subject in missing:
            by_subject.setdefault(subject, []).append(row)
    wanted = [row for found in by_subject.values() for row in found]
    if not wanted:
        return
    rank_zero_info(f"S3T: the floor lacks {counted(len(wanted), 'row')} of {counted(len(missing), 'subject')}.")
    with closing(_progress(trainer, len(wanted))) as bar:
        parts = read(FeatureTask(wanted, floor, part, fit_store.start))
        for task, chosen, features in _whole_subjects(parts, wanted, data):
            owners = [data.subjects[row] for row in chosen]
            building.add_features(part, task, features, owners, [tags[row] for row in chosen], fit_store.plan.as_of)
            bar.update(len(chosen))
    building.complete_floor()


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
        if read < len(wanted):  # the subject whose rows may go on
            while end > done and data.subjects[wanted[end - 1]] == data.subjects[wanted[read]]:
                end -= 1
        if end > done:
            features = torch.cat([part.features for part in pending])
            targets = torch.cat([part.targets for part in pending])
            count = end - done
            yield task, wanted[done:end], FeatureRows(features[:count], targets[:count])
            pending, done = [FeatureRows(features[count:], targets[count:])], end


def _tags(data: TrainingData, rows: list[int], store: Store) -> dict[int, bytes]:
    """Return what tells each row's contents: a keyed digest, or nothing where contents are not compared."""
    if not data.row_digests:
        return dict.fromkeys(rows, b"")
    texts = {row: f"row {data.row_digests[row]}" for row in rows}
    hashes = store.subject_hashes(texts.values())
    return {row: bytes.fromhex(hashes[text])[:16] for row, text in texts.items()}


def _progress(trainer: pl.Trainer, rows: int) -> Tqdm:
    return Tqdm(
        total=rows,
        desc="floor",
        unit="row",
        disable=trainer.progress_bar_callback is None,
        dynamic_ncols=True,
        mininterval=0.5,
    )
