"""Rows with owners, and the dataloaders of all data modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset

from lightning_s3t.errors import ConfigurationError, DataError

Part = Literal["train", "val", "test"]


class OwnedRows(Dataset[Any]):
    """Rows in a fixed order, with the owner of each.

    Args:
        rows: The rows.
        owners: The owner of each row; None if unknown: then each row is its own owner, by its index.
        read: Makes a sample of a row; None to use it unchanged.

    Raises:
        DataError: There are more or fewer owners than rows, or a row has none.

    Example:
        >>> data = OwnedRows([1.0, 2.0], ["ann", "bob"])
        >>> data[1], data.owners
        (2.0, ['ann', 'bob'])
        >>> OwnedRows([1.0, 2.0]).owners
        ['0', '1']
    """

    def __init__(
        self, rows: Sequence[Any], owners: Sequence[str] | None = None, read: Callable[[Any], Any] | None = None
    ) -> None:
        self.rows = rows
        self.owners = list(owners) if owners is not None else [str(row) for row in range(len(rows))]
        self.read = read
        if len(self.owners) != len(rows):
            raise DataError(f"Got {len(self.owners)} owners for {len(rows)} rows. Expected one owner per row.")
        if "" in self.owners:
            raise DataError(
                f"Row {self.owners.index('')} has no owner. Expected an id in every row: all rows without one would "
                "be forgotten together. Give each such row an id of its own."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row] if self.read is None else self.read(self.rows[row])


class OwnedData(pl.LightningDataModule, ABC):
    """A data module whose parts are loaded once, always in the same order.

    Args:
        batch_size: Rows per batch.
        workers: Processes that read rows; 0 to read them in the process that trains.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(self, batch_size: int, workers: int = 0) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise ConfigurationError(f"Expected argument `{name}` to be {least} or more but got {value}.")
        self.batch_size = batch_size
        self.workers = workers
        self._parts: dict[Part, OwnedRows | None] = {}

    @abstractmethod
    def load(self, part: Part) -> OwnedRows | None:
        """Load a part of the data.

        Args:
            part: The part.

        Returns:
            Its rows; None if the data does not have this part.
        """

    def collate(self) -> Callable[[list[Any]], Any] | None:
        """Return the collate function; None to stack samples."""
        return None

    def rows(self, part: Part) -> OwnedRows | None:
        """Return a part of the data, loaded at the first call.

        Args:
            part: The part.
        """
        if part not in self._parts:
            self._parts[part] = self.load(part)
        return self._parts[part]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled train rows."""
        rows = self.rows("train")
        if rows is None or not len(rows):
            raise DataError(f"{type(self).__name__} has no train rows. Expected one or more.")
        return self._loader(rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the rows for validation; an empty list if there are none."""
        rows = self.rows("val")
        return self._loader(rows) if rows is not None else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the rows for the test."""
        rows = self.rows("test")
        if rows is None:
            raise DataError(f"{type(self).__name__} has no test rows. Name them in its argument `test`.")
        return self._loader(rows)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the rows for the test."""
        return self.test_dataloader()

    def _loader(self, rows: OwnedRows, shuffle: bool = False) -> DataLoader[Any]:
        # batch_size by name: when Lightning makes a loader for predictions again, it gives the size by name too
        return DataLoader(
            rows, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.workers, collate_fn=self.collate()
        )


def hold_out(rows: Sequence[Any], count: int, part: Part) -> range:
    """Return the numbers of the rows of a part, where the first rows are held out for validation.

    The first and not the last, so that rows which come later move nothing.

    Args:
        rows: All rows.
        count: Number of rows to hold out.
        part: "train" or "val".

    Raises:
        DataError: Nothing is left to train on.

    Example:
        >>> hold_out("abcde", 2, "val"), hold_out("abcde", 2, "train")
        (range(0, 2), range(2, 5))
    """
    if not 0 <= count < len(rows):
        raise DataError(
            f"Cannot hold out {count} of {len(rows)} rows for validation. Expected `validation_rows` to be from 0 to "
            f"{len(rows) - 1}."
        )
    return range(count) if part == "val" else range(count, len(rows))
