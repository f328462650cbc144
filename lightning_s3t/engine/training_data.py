"""The training data by slices: the place of each subject's rows, and a dataloader for each unit."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
)

from lightning_s3t.core.units import Cell
from lightning_s3t.engine.found_state.contents import bytes_of, is_plain
from lightning_s3t.engine.found_state.digest import AnyGenerator, find_generators
from lightning_s3t.engine.row_digests import digest_row
from lightning_s3t.engine.sampling import sampling_of
from lightning_s3t.engine.subjects import Subjects, subjects_of
from lightning_s3t.errors import DataError, UnsupportedError
from lightning_s3t.plan import DataMode, Partition, Place, RiskBands, UnitId
from lightning_s3t.tuning.randomness import derive_seed, seed_all, seed_generator

_REHEARSED_BATCHES = 100


class SliceDigests(NamedTuple):
    """Digests that show whether a slice has changed between fits.

    Attributes:
        ordered: Digest of its rows' ids in the order of the data set, as a unit saw them.
        sorted: Of the same, sorted: who was in it, whatever the order.
        contents: Digest of the contents of its rows; None if they were not read.
    """

    ordered: str
    sorted: str
    contents: str | None


class TrainingData:
    """A map-style data set, divided into the slices of all shards.

    Args:
        loader: The script's own train dataloader; units get one like it, over their rows.
        subjects: A callable that takes the data set and returns one id per row, the name of an attribute that holds
            them, or None for the row's index.
        partition: The partition of the subjects.
        risk: The bands of risk, where the partition has any.

    Attributes:
        left_out: The subjects whose rows are left out.
        row_digests: The result of `digest_rows`, from a separate process; empty if not requested.

    Raises:
        DataError: The data set has no length, or does not have one id per row.
        UnsupportedError: The dataloader draws rows in a way that depends on the whole data set.

    Example:
        >>> data = TrainingData(DataLoader(range(6), batch_size=2), "index", Partition(shards=1, slices=2))
        >>> sum(len(rows) for rows in data.rows_by_place.values())
        6
    """

    def __init__(self, loader: object, subjects: Subjects, partition: Partition, risk: RiskBands | None = None) -> None:
        self.loader = check_loader(loader)
        self._of_subclass = _subclass_arguments(self.loader)
        self.dataset: Any = self.loader.dataset
        self.sampling = sampling_of(self.loader)
        self.partition = partition
        self.subjects = subjects_of(self.dataset, subjects)
        self.rows_by_place: dict[Place, list[int]] = {}
        self.left_out: frozenset[str] = frozenset()
        self.row_digests: tuple[str, ...] = ()
        self.bands = {subject: risk.band(subject) if risk else 0 for subject in dict.fromkeys(self.subjects)}
        self._generations: dict[str, int] = {}
        self._places: dict[str, Place] = {}
        self._find_places()
        self._generators: dict[str, AnyGenerator] | None = None
        if type(self.loader) is not DataLoader:
            _check_same_attributes(self.loader, self.unit_loader(range(len(self.subjects)), seed=0))
        self.leave_out(())

    def __getstate__(self) -> dict[str, Any]:
        # a unit's process must not know who owns which row
        without_rows = {
            "subjects": (),
            "bands": {},
            "_generations": {},
            "_places": {},
            "rows_by_place": {},
            "left_out": frozenset[str](),
        }
        state = {name: value for name, value in vars(self).items() if name != "_ordinals"}
        return {**state, **without_rows, "row_digests": (), "partition": replace(self.partition, secret=b"")}

    def join_generations(self, count: int, generations: Mapping[str, int]) -> None:
        """Move people who came later to their place in the store; `leave_out` has to be called afterwards.

        Args:
            count: Number of generations after the first.
            generations: By subject, with which each came; those of the first may be missing.
        """
        later = {subject: number for subject, number in generations.items() if number}
        if (count, later) != (self.partition.generations, self._generations):
            self.partition = replace(self.partition, generations=count)
            self._generations = later
            self._find_places()

    def _find_places(self) -> None:
        generations = [self._generations.get(subject, 0) for subject in self.bands]
        places = list(self.partition.places(self.bands, self.bands.values(), generations))
        self._places = dict(zip(self.bands, places, strict=True))
        shards, slices = range(self.partition.all_shards), range(self.partition.slices)
        self.rows_by_place = {Place(shard, slice_): [] for shard in shards for slice_ in slices}

    def leave_out(self, subjects: Iterable[str]) -> None:
        """Leave out the rows of subjects who may not be trained on, and of nobody else.

        Args:
            subjects: Canonical ids.
        """
        self.left_out = frozenset(subjects)
        for rows in self.rows_by_place.values():
            rows.clear()
        chosen = self.sampling.chosen
        for row, subject in enumerate(self.subjects):
            if subject not in self.left_out and (chosen is None or row in chosen):
                self.rows_by_place[self._places[subject]].append(row)

    def cells_of(self, subjects: Iterable[str]) -> set[Cell]:
        """Return the cells of subjects of the data.

        Args:
            subjects: Canonical ids.
        """
        return {self._places[subject].cell for subject in subjects}

    def empty_places(self) -> list[Place]:
        """Return the slices that no row belongs to."""
        return [place for place, rows in self.rows_by_place.items() if not rows]

    def check_slices(self) -> None:
        """Raise an error if a slice is empty without a request.

        Raises:
            DataError: Naming the slices.
        """
        empty = self.empty_places()
        if empty:
            subjects, slices = len(self._places), self.partition.shards * self.partition.slices
            names = ", ".join(f"shard {place.shard} slice {place.slice}" for place in empty)
            raise DataError(
                f"{len(empty)} of {slices} slices are empty: {names}. The data has {subjects} subjects, and a hash of "
                "its id assigns each to a slice. Expected every slice to have rows: use fewer shards or slices (ten "
                "subjects per slice or more), or another seed."
            )

    def rows(self, unit: UnitId, data: DataMode) -> list[int]:
        """Return the rows that a unit trains on, in the data set's order.

        Args:
            unit: The unit.
            data: "cumulative" for all slices of its prefix, "disjoint" for the last one alone.
        """
        places = [Place(unit.shard, slice_) for slice_ in unit.trained_slices(data)]
        return sorted(row for place in places for row in self.rows_by_place[place])

    def digest_rows(self, seed: int) -> tuple[str, ...]:
        """Read every row once, and return digests of the contents.

        Args:
            seed: Seed of random augmentations, the same for each row.
        """
        found = []
        for row in range(len(self.dataset)):
            seed_all(seed)
            self.seed_generators(seed)
            found.append(digest_row(self.dataset[row]))
        return tuple(found)

    def digests(self, keyed: Callable[[Iterable[str]], Mapping[str, str]]) -> dict[Place, SliceDigests]:
        """Return digests of each slice's ids, and of the contents of its rows if known.

        With its id, a row has its weight if rows are drawn by weight, and its number among its subject's rows if only
        some are drawn, since a unit depends on these too.

        Args:
            keyed: Gives the keyed hashes of texts, so that digests of few ids cannot be guessed.
        """
        hashes = keyed([subject for subject in self._places if subject not in self.left_out])
        contents_of = keyed({f"row {digest}" for digest in self.row_digests})
        found = {}
        for place, rows in self.rows_by_place.items():
            ids = [hashes[self.subjects[row]] + self._drawn(row) for row in rows]
            contents = [contents_of[f"row {self.row_digests[row]}"] for row in rows] if self.row_digests else None
            found[place] = SliceDigests(
                _digest(ids), _digest(sorted(ids)), None if contents is None else _digest(contents)
            )
        return found

    def _drawn(self, row: int) -> str:
        weights = self.sampling.weights
        weight = f" {float(weights[row]).hex()}" if weights is not None else ""
        return weight + (f" #{self._ordinals[row]}" if self.sampling.chosen is not None else "")

    @functools.cached_property
    def _ordinals(self) -> list[int]:
        """The number of each row among those of its subject."""
        counts: Counter[str] = Counter()
        found = []
        for subject in self.subjects:
            found.append(counts[subject])
            counts[subject] += 1
        return found

    def count_subjects(self, rows: Sequence[int]) -> int:
        """Return how many subjects own these rows.

        Args:
            rows: Row indices.
        """
        return len({self.subjects[row] for row in rows})

    def unit_loader(self, rows: Sequence[int], seed: int, replicas: int = 1, rank: int = 0) -> DataLoader[Any]:
        """Return a dataloader like the script's own, over a unit's rows.

        Args:
            rows: The unit's rows.
            seed: The unit's seed: order and worker seeds come from it alone.
            replicas: Number of processes that train together.
            rank: The number of this one.

        Raises:
            UnsupportedError: The script's own dataloader class cannot be rebuilt.
        """
        loader = self.loader
        subset = UnitRows(self.dataset, list(rows))
        shuffle, draws = self.sampling.shuffled, self.sampling.draws(rows, seed, replicas, rank)
        generator = torch.Generator()
        generator.manual_seed(derive_seed(seed, "workers"))
        arguments: dict[str, Any] = {
            "batch_size": loader.batch_size,
            "num_workers": loader.num_workers,
            "collate_fn": loader.collate_fn,
            "pin_memory": loader.pin_memory,
            "drop_last": loader.drop_last,
            "timeout": loader.timeout,
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "generator": generator,
            **self._of_subclass,
        }
        if draws is not None:
            arguments["sampler"] = draws
        elif replicas > 1:
            arguments["sampler"] = DistributedSampler(
                subset, replicas, rank, shuffle=shuffle, seed=derive_seed(seed, "order") % 2**31
            )
        elif shuffle:
            arguments["sampler"] = UnitShuffle(len(rows), seed)
        try:
            return type(loader)(subset, **arguments)
        except TypeError as error:
            raise UnsupportedError(
                f"The train dataloader's class {type(loader).__name__} does not take DataLoader's arguments "
                f"({error}), so it cannot be rebuilt for a unit's rows. Use torch.utils.data.DataLoader, and put "
                "custom behaviour into its collate_fn."
            ) from error

    def batches(self, batches: Sequence[Sequence[int]]) -> DataLoader[Any]:
        """Return batches of rows, collated as in the script's own dataloader.

        Args:
            batches: The row indices of each.
        """
        return DataLoader(self.dataset, batch_sampler=batches, collate_fn=self.loader.collate_fn)  # type: ignore[arg-type]

    def rows_of(self, subjects: Collection[str]) -> list[int]:
        """Return the rows that may be drawn and have a subject, including subjects who are left out.

        Args:
            subjects: Canonical ids.
        """
        chosen = self.sampling.chosen
        return [
            row
            for row, subject in enumerate(self.subjects)
            if subject in subjects and (chosen is None or row in chosen)
        ]

    def rehearsal_loader(self, trainer: pl.Trainer) -> DataLoader[Any]:
        """Return a dataloader like the script's own, over as many rows whatever the data set has.

        A store compares the arguments of a schedule. Those that depend on the number of batches are specific to each
        unit, and must not depend on the current number of rows.

        Args:
            trainer: The trainer.
        """
        every: Any = trainer.val_check_interval  # type: ignore[attr-defined]
        batches = max(_REHEARSED_BATCHES, every if isinstance(every, int) else 0)
        count = batches * (self.loader.batch_size or 1) * trainer.world_size
        rows = list(itertools.islice(itertools.cycle(range(len(self.dataset))), count))
        return self.unit_loader(rows, 0, trainer.world_size, trainer.global_rank)

    def seed_generators(self, seed: int) -> None:
        """Seed the random generators that the data set and the collate function hold.

        A data set that augments with its own generator would otherwise draw different numbers in a unit, depending on
        the number of rows in earlier units.

        Args:
            seed: The unit's seed.
        """
        for path, generator in self.find_generators().items():
            seed_generator(generator, derive_seed(seed, "generator", path))

    def find_generators(self) -> dict[str, AnyGenerator]:
        """Return the random generators that the data set and the collate function hold, by path; looks once."""
        if self._generators is None:
            self._generators = find_generators({"dataset": self.dataset, "collate_fn": self.loader.collate_fn})
        return self._generators


class UnitRows(Subset[Any]):
    """A unit's rows of the data set, which looks like that to the script's hooks: other attributes are its own.

    An attribute with one value per row has only the values of the unit's rows.

    Args:
        dataset: The data set.
        indices: The unit's rows.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> rows = TensorDataset(torch.tensor([5, 6, 7]))
        >>> rows.owners, rows.name = ["ann", "ben", "cleo"], "people"
        >>> unit = UnitRows(rows, [2, 0])
        >>> unit.owners, unit.name
        (['cleo', 'ann'], 'people')
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in vars(self):  # a copy that is still being made
            raise AttributeError(name)
        value = getattr(self.dataset, name)
        size = len(self.dataset)  # type: ignore[arg-type]
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return value[self.indices] if value.ndim and len(value) == size else value
        if type(value) in (list, tuple) and len(value) == size:
            return type(value)(value[row] for row in self.indices)
        return value


class UnitShuffle(Sampler[int]):
    """Shuffles a unit's rows, every epoch in another order.

    torch's own `RandomSampler` keeps drawing from one generator, and the number of draws in an epoch depends on how the
    loader reads it: worker processes read ahead, so from the second epoch on the order would differ from that without
    workers.

    Args:
        rows: Number of the unit's rows.
        seed: The unit's seed.

    Example:
        >>> first, same = UnitShuffle(5, seed=1), UnitShuffle(5, seed=1)
        >>> sorted(first) == [0, 1, 2, 3, 4], list(first) == (list(same), list(same))[1]
        (True, True)
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self._epoch))
        self._epoch += 1
        yield from torch.randperm(self._rows, generator=generator).tolist()

    def __len__(self) -> int:
        return self._rows


def check_loader(loader: object) -> DataLoader[Any]:
    """Check that a train dataloader can be rebuilt for a part of its rows.

    Args:
        loader: The script's dataloader.

    Returns:
        The same.

    Raises:
        DataError: It is not a DataLoader, or the rows of its data set cannot be counted or indexed.
        UnsupportedError: Its sampler depends on the whole data set.
    """
    if isinstance(loader, (list, tuple, dict)) or type(loader).__name__ == "CombinedLoader":
        raise UnsupportedError(
            "Got several train dataloaders. S3T divides one data set into slices: pass one DataLoader, for example "
            "over a torch.utils.data.ConcatDataset or StackDataset of them."
        )
    if not isinstance(loader, DataLoader):
        raise DataError(f"Expected the train dataloader to be a torch DataLoader but got {type(loader).__name__}.")
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"The train data set {type(dataset).__name__} is an IterableDataset: its rows cannot be selected by "
            "index, so they cannot be divided into slices. Expected a map-style data set with __len__ and "
            "__getitem__."
        )
    try:
        len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(
            f"The train data set {type(dataset).__name__} has no length. Expected a map-style data set with __len__."
        ) from error
    if loader.batch_size is None or type(loader.batch_sampler).__name__ != "BatchSampler":
        raise UnsupportedError(
            "The train dataloader has its own batch_sampler (or no batch size), which depends on the whole data set. "
            "Use batch_size=..., with shuffle=True or False."
        )
    sampling_of(loader)
    return loader


def _subclass_arguments(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return the arguments of a DataLoader subclass other than DataLoader's own.

    Python does not store constructor arguments: the class has to keep them, under their names.
    """
    known = inspect.signature(DataLoader.__init__).parameters
    found = {}
    _, *parameters = list(inspect.signature(type(loader)).parameters.items())  # the first is the data set
    for name, parameter in parameters:
        if name in known or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(loader, name):
            raise UnsupportedError(
                f"The train dataloader's class {type(loader).__name__} takes an argument {name!r} and does not keep "
                f"it, so it cannot be made again over a unit's rows. Set self.{name} = {name} in its __init__, or put "
                "the custom behaviour into the collate_fn of a torch.utils.data.DataLoader."
            )
        found[name] = getattr(loader, name)
    return found


def _check_same_attributes(loader: DataLoader[Any], made: DataLoader[Any]) -> None:
    """Raise an error if a dataloader that was rebuilt over all rows has lost **kwargs of its class."""
    own = vars(loader).keys() - vars(DataLoader(loader.dataset)).keys()
    for name in sorted(name for name in own if is_plain([vars(loader)[name]], (tuple, list, dict))):
        if name not in vars(made) or bytes_of(vars(made)[name]) != bytes_of(vars(loader)[name]):
            raise UnsupportedError(
                f"Rebuilt for a unit's rows, the train dataloader {type(loader).__name__} has another {name}: "
                f"{vars(made).get(name)!r} instead of {vars(loader)[name]!r}. Make it an argument of the class's "
                "__init__, or put the custom behaviour into the collate_fn of a torch.utils.data.DataLoader."
            )


def _digest(ids: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for subject in ids:
        digest.update(subject.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()
