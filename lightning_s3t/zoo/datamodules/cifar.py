"""CIFAR-10 and CIFAR-100, from the files that their makers publish."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules.image_reading import HALF, ImageReading
from lightning_s3t.zoo.datamodules.rows import OwnedData, OwnedRows, Part, hold_out

FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
LABELS = {10: b"labels", 100: b"fine_labels"}
TRAIN_FILES = {10: tuple(f"data_batch_{number}" for number in range(1, 6)), 100: ("train",)}
TEST_FILES = {10: ("test_batch",), 100: ("test",)}


class CIFARData(OwnedData):
    """CIFAR-10 or CIFAR-100. Its images do not have owners, so each is its own owner, by its index in the train files.

    Args:
        folder: The folder that has `cifar-10-batches-py` or `cifar-100-python` in it.
        classes: 10 or 100.
        download: Whether to download missing files with torchvision.
        validation_rows: Number of the first train images to hold out for validation.
        image_size: The height and width that images are brought to.
        augment: Whether training crops and flips at random.
        mean: The mean to subtract from each channel, for values from 0 to 1.
        std: The standard deviation to divide each channel by.
        batch_size: Rows per batch.
        workers: Processes that read rows.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: Literal[10, 100] = 10,
        download: bool = False,
        validation_rows: int = 5000,
        image_size: int = 224,
        augment: bool = True,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        if classes not in FOLDERS:
            raise ConfigurationError(f"Expected argument `classes` to be 10 or 100 but got {classes!r}.")
        self.folder = Path(folder)
        self.classes = classes
        self.download = download
        self.validation_rows = validation_rows
        self.reading = ImageReading(image_size, False, mean, std)
        self.train_reading = ImageReading(image_size, augment, mean, std)

    def prepare_data(self) -> None:
        """Called once on each machine: downloads missing files, if `download` is set."""
        if self.download:
            from torchvision import datasets

            kind = datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100
            kind(str(self.folder), download=True)

    def load(self, part: Part) -> OwnedRows | None:
        """Load a part.

        Args:
            part: The part.

        Raises:
            DataError: The files are missing or damaged.
        """
        if part == "val" and not self.validation_rows:
            return None
        files = (TEST_FILES if part == "test" else TRAIN_FILES)[self.classes]
        rows = [row for name in files for row in self._read(self.folder / FOLDERS[self.classes] / name)]
        if part == "test":
            return OwnedRows(rows, read=self.reading)
        numbers = hold_out(rows, self.validation_rows, part)
        return OwnedRows(
            [rows[number] for number in numbers],
            [str(number) for number in numbers],
            self.train_reading if part == "train" else self.reading,
        )

    def _read(self, path: Path) -> list[tuple[np.ndarray[Any, Any], int]]:
        if not path.is_file():
            raise DataError(
                f"There is no file {path}. Expected the files of CIFAR-{self.classes}: set download=True, or unpack "
                f"them so that {path} exists."
            )
        with path.open("rb") as file:
            try:
                content = ArrayUnpickler(file, encoding="bytes").load()
                images = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                labels = [int(label) for label in content[LABELS[self.classes]]]
            except (pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
                raise DataError(
                    f"The file {path} is not a batch of CIFAR-{self.classes} ({error}). Delete it and "
                    "set download=True."
                ) from error
        return list(zip(images, labels, strict=True))


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numbers, text and NumPy arrays, and refuses everything that could run code."""

    allowed = frozenset({"_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        """Return the requested object, if it is part of an array.

        Args:
            module: Its module.
            name: Its name.

        Raises:
            pickle.UnpicklingError: It does not.
        """
        if name in self.allowed and module.partition(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of an array")
