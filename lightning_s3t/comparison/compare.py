"""The comparison of unlearning methods on one's own model and data."""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch.utils.data import DataLoader

from lightning_s3t.callbacks import Unlearning
from lightning_s3t.comparison.asking import Asker
from lightning_s3t.comparison.comparison import Comparison
from lightning_s3t.comparison.folder import ComparisonFolder
from lightning_s3t.comparison.judging import Runs, judge
from lightning_s3t.comparison.results import Setting
from lightning_s3t.comparison.rows import ComparedRows
from lightning_s3t.comparison.run import Relearning, Script, make_run
from lightning_s3t.engine.muted_lightning import quiet
from lightning_s3t.engine.versions import versions
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.methods import METHODS, Retrain, UnlearningMethod, method_of
from lightning_s3t.methods.checks import check_count
from lightning_s3t.methods.labels import LabelPlace, check_label_place
from lightning_s3t.tuning.adapters import describe_adapter
from lightning_s3t.tuning.fingerprint import tensor_bytes

MethodLike = UnlearningMethod | str | Mapping[str, Any]

REFERENCE = "retrain"
DEFAULT_METHODS = ("s3t", "sisa", "fine_tune", "ssd")
THOROUGH_SEEDS = 8


def compare(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    methods: Sequence[MethodLike] | Mapping[str, MethodLike] = DEFAULT_METHODS,
    requests: int | Sequence[Any] = 10,
    *,
    output: str | Path,
    thorough: bool = False,
    seeds: int | None = None,
    measure_after: Sequence[int] | None = None,
    labels: LabelPlace = None,
    retained_rows: int = 1000,
    relearn_rate: float = 1e-3,
    relearn_steps: int = 100,
    train_dataloaders: DataLoader[Any] | None = None,
    test_dataloaders: DataLoader[Any] | None = None,
) -> Comparison:
    """Compare several unlearning methods with the same model, data, requests and seeds.

    Each method trains into its own store, subjects ask to be forgotten one after another, and the serving model is
    measured on test rows, on retained rows and on the rows of subjects who have asked. The reference is a model trained
    from scratch on the retained rows, with which the serving models are compared. Methods that revoke or subtract carry
    every request out at once. Those that answer with another model get one fit for all requests since the last
    measurement, not one for each.

    Finished runs are kept in `output`, so that a second call continues from there. Stores are removed after they were
    measured. The outputs for rows are kept, and are personal data like the rows themselves.

    Args:
        trainer: A trainer as for a fit, with an S3T or Unlearning callback: its `subjects`, `layers`, `head`,
            `adapter`, `isolation`, `parallel_units` and `floor` are used for all methods, and its store is not changed.
        model: The module as for a fit: a classifier, before any training of ours. It is not changed.
        datamodule: The data. Its test rows (or validation rows, if it has none) are used to measure accuracy, and in
            attacks as rows that no model was trained on: they must be similar to the others.
        methods: Methods, their names, or mappings with a name as "name" and arguments; or a mapping of these by a label
            each. "s3t" and "sisa" by name alone have the shards and slices of the trainer's callback. The reference,
            "retrain", is always among them.
        requests: Number of subjects who ask, drawn from all; or their ids, in the order in which they ask.
        output: A folder for finished runs.
        thorough: Train everything with several seeds, for attacks by shadow models: the likelihood ratio attack on
            unlearning (U-LiRA), and robust membership inference (RMIA).
        seeds: Number of seeds for each method, starting with that of the callback. Left out, 1, or 8 of a thorough
            comparison.
        measure_after: After how many requests to measure. Left out, 1, 10, 100, ... and after the last.
        labels: The key or the number of the labels in a batch, if they are not found.
        retained_rows: The largest number of retained rows to measure.
        relearn_rate: Learning rate (Adam) of the relearning of forgotten rows.
        relearn_steps: Steps of it, at most.
        train_dataloaders: In place of a data module: the train rows.
        test_dataloaders: In place of a data module: the test rows.

    Returns:
        The result. `print` shows it; `to_json`, `to_markdown` and `plot` export it.

    Raises:
        ConfigurationError: An argument is out of range, a method is unknown, or `output` has another comparison.
        UnsupportedError: The module is not a classifier, or there are several devices.
        DataError: The data has no test rows, or no rows are left to compare on.

    Example:
        >>> found = compare(trainer, model, dm, ["s3t", "ssd"], requests=10, output="c")  # doctest: +SKIP
        >>> found["ssd"].after(10).test_gap  # doctest: +SKIP
        Estimate(value=-0.01, lower=-0.03, upper=0.01)
    """
    callback = _callback(trainer)
    named = _named(methods, callback.method)
    check_label_place(labels)
    for name, value in (("retained_rows", retained_rows), ("relearn_steps", relearn_steps)):
        check_count(name, value)
    count = seeds if seeds is not None else THOROUGH_SEEDS if thorough else 1
    check_count("seeds", count)
    datamodule = _data(datamodule, train_dataloaders, test_dataloaders)
    asker = Asker(trainer, model, datamodule, labels)
    script = Script(trainer, model, datamodule, callback)
    first_seed = callback.config.units.seed
    with _silent(trainer):
        datamodule.trainer = trainer
        datamodule.prepare_data()
        datamodule.setup("fit")
        rows = ComparedRows.of(datamodule, callback.config.subjects, requests, first_seed, retained_rows)
        after = _measured_after(measure_after, len(rows.requests))
        relearning = Relearning(None, relearn_rate, relearn_steps)
        settings = _settings(trainer, model, callback, rows, after, relearning)
        folder = ComparisonFolder(Path(output), settings)
        with folder.held():
            all_seeds = range(first_seed, first_seed + count)
            runs = _make_runs(script, asker, rows, named, all_seeds, after, relearning, folder)
    reference = runs[REFERENCE]
    setting = Setting(
        measured_after=after,
        seeds=tuple(all_seeds),
        thorough=thorough,
        subjects=rows.subjects,
        rows=rows.rows,
        forgotten_rows=len(rows.asked_at),
        retained_rows=len(rows.retained.dataset),  # type: ignore[arg-type]
        test_rows=len(rows.test.dataset),  # type: ignore[arg-type]
        device=f"{type(trainer.accelerator).__name__.removesuffix('Accelerator')}, {platform.machine()}",
        cores=os.cpu_count() or 1,
        versions=versions(),
    )
    results = tuple(judge(one, reference, rows.asked_at, after, thorough) for one in runs.values())
    return Comparison(setting, results)


def _make_runs(
    script: Script,
    asker: Asker,
    rows: ComparedRows,
    methods: Mapping[str, UnlearningMethod],
    seeds: Sequence[int],
    after: tuple[int, ...],
    relearning: Relearning,
    folder: ComparisonFolder,
) -> dict[str, Runs]:
    """Make the unfinished runs; the reference first, since it defines the goal of the others' relearning."""
    kept = {
        (label, seed): folder.load(label, seed, repr(method)) for seed in seeds for label, method in methods.items()
    }
    bar = Tqdm(total=len(kept) * (len(after) + 1), desc="compare", dynamic_ncols=True, smoothing=0)
    try:
        for (label, seed), found in kept.items():
            number = bar.n
            if found is None:

                def step(what: str, name: str = f"{label}, seed {seed}") -> None:
                    bar.set_description(f"{name}: {what}")
                    bar.update(1)

                with folder.working() as scratch, _interruptible():
                    of_reference = kept.get((REFERENCE, seed)) if label != REFERENCE else None
                    goal = float(of_reference[1]["forgotten/0/correct"].float().mean()) if of_reference else None
                    found = make_run(
                        script,
                        asker,
                        rows,
                        label,
                        methods[label],
                        seed,
                        after,
                        replace(relearning, goal=goal),
                        scratch,
                        step,
                    )
                if label == REFERENCE and found[0].refused is not None:
                    raise ConfigurationError(
                        f"The reference, a training from scratch, did not finish: {found[0].refused}"
                    )
                folder.save(*found)
                kept[label, seed] = found
            bar.update(number + len(after) + 1 - bar.n)
    finally:
        bar.close()
    done = {key: found for key, found in kept.items() if found is not None}
    return {
        label: Runs(label, method, [done[label, seed][0] for seed in seeds], [done[label, seed][1] for seed in seeds])
        for label, method in methods.items()
    }


def _callback(trainer: pl.Trainer) -> Unlearning:
    found = [callback for callback in trainer.callbacks if isinstance(callback, Unlearning)]  # type: ignore[attr-defined]
    if len(found) != 1:
        raise ConfigurationError(
            f"The trainer has {len(found)} Unlearning callbacks. Expected one, S3T or another, that says who owns "
            "each row and which layers are trained: all methods use its arguments."
        )
    return found[0]


def _named(
    methods: Sequence[MethodLike] | Mapping[str, MethodLike], own: UnlearningMethod
) -> dict[str, UnlearningMethod]:
    """Return the methods by their labels, the reference first."""
    if isinstance(methods, str) or not methods:
        raise ConfigurationError(
            f"Expected argument `methods` to be a list of methods, or a mapping of them by label, but got {methods!r}."
        )
    if isinstance(methods, Mapping):
        found = {str(label): _made(method, own) for label, method in methods.items()}
    else:
        found = {}
        for method in (_made(method, own) for method in methods):
            if method.name in found:
                raise ConfigurationError(
                    f"The method {method.name!r} is among `methods` twice. Give a mapping, with a label for each."
                )
            found[method.name] = method
    for label in found:
        if not label or not label.isprintable() or set(label) & set("/\\:") or label.startswith("."):
            raise ConfigurationError(
                f"The label {label!r} cannot name a folder. Expected a label without / \\ : or a dot."
            )
    taken = found.pop(REFERENCE, Retrain())
    if not isinstance(taken, Retrain):
        raise ConfigurationError(f"The label {REFERENCE!r} is reserved for the reference. Give {taken.name!r} another.")
    return {REFERENCE: taken, **found}


def _made(method: MethodLike, own: UnlearningMethod) -> UnlearningMethod:
    """Return a method; a method with shards that is given only by name has those of the script's callback."""
    if isinstance(method, str) and method == own.name:
        return own
    kind = METHODS.get(method) if isinstance(method, str) else None
    if kind is None or kind.response != "revoke":
        return method_of(method)
    if own.response != "revoke":
        raise ConfigurationError(
            f"The method {method!r} needs to know how many shards and slices, and the trainer's callback is of "
            f"{own.name!r}, which has none. Give a mapping: {{'name': {method!r}, 'shards': ..., ...}}."
        )
    arguments: dict[str, Any] = {"name": method, "shards": own.shards, "slices": own.slices}
    if kind is METHODS["s3t"]:
        arguments["budget"] = min(4, own.slices)
    return method_of(arguments)


def _measured_after(given: Sequence[int] | None, requests: int) -> tuple[int, ...]:
    if given is None:
        powers = (10**power for power in range(len(str(requests))))
        return tuple(sorted({0, requests, *(number for number in powers if number <= requests)}))
    for number in given:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= requests:
            raise ConfigurationError(
                f"Expected argument `measure_after` to hold numbers from 0 to {requests}, that of the requests, but "
                f"got {number!r}."
            )
    return tuple(sorted({0, requests, *given}))


class _Loaders(pl.LightningDataModule):
    """A data module of two dataloaders."""

    def __init__(self, train: DataLoader[Any], test: DataLoader[Any]) -> None:
        super().__init__()
        self._train = train
        self._test = test

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the train rows."""
        return self._train

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test rows."""
        return self._test


def _data(
    datamodule: pl.LightningDataModule | None, train: DataLoader[Any] | None, test: DataLoader[Any] | None
) -> pl.LightningDataModule:
    if datamodule is not None and train is None and test is None:
        return datamodule
    if datamodule is None and train is not None and test is not None:
        return _Loaders(train, test)
    raise ConfigurationError("Expected a data module, or both `train_dataloaders` and `test_dataloaders`.")


def _settings(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    callback: Unlearning,
    rows: ComparedRows,
    after: tuple[int, ...],
    relearning: Relearning,
) -> dict[str, Any]:
    """Return the common settings of all runs, JSON-ready."""
    config = callback.config
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(tensor_bytes(tensor))
    names = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
    plain = (str, int, float, type(None))
    hyperparameters = {name: value for name, value in sorted(model.hparams.items()) if isinstance(value, plain)}
    return {
        "model": type(model).__qualname__,
        "hyperparameters": hyperparameters,
        "weights": weights.hexdigest(),
        "data": rows.digest,
        "rows": rows.rows,
        "test_rows": len(rows.test.dataset),  # type: ignore[arg-type]
        "batch_size": rows.forgotten.batch_size,
        "requests": len(rows.requests),
        "measured_after": list(after),
        "seed": config.units.seed,
        "layers": repr(config.layers),
        "head": repr(config.head),
        "adapter": describe_adapter(config.adapter),
        "floor": repr(config.floor),
        "isolation": callback.isolation,
        "parallel_units": config.units.parallel_units,
        "relearning": [relearning.learning_rate, relearning.most],
        **{name: repr(getattr(trainer, name)) for name in names},
    }


@contextmanager
def _silent(trainer: pl.Trainer) -> Iterator[None]:
    """Silence Lightning's messages about each of many fits and tests."""
    with quiet(trainer):
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Re-raise Ctrl-C as KeyboardInterrupt: an interrupted fit ends with `exit(1)`."""
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from error
