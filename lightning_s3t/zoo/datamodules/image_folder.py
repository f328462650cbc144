"""Images in folders, one per class; also as Tiny ImageNet has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules.image_reading import HALF, ImageReading
from lightning_s3t.zoo.datamodules.rows import OwnedData, OwnedRows, Part

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif")
ANNOTATIONS = "val_annotations.txt"


class ImageFolderData(OwnedData):
    """Images in `folder/train/class/...`, and in the same way for validation and test.

    Classes are the sorted names of the folders in `train`. A part that has a `val_annotations.txt` instead, as Tiny
    ImageNet's, has its labels from there.

    Args:
        folder: The folder of the parts.
        owner: The owner of an image: "file" for itself (its path within the part is the id), "folder" for the folder
            between the class and the file (`train/cat/ann/1.png` is ann's), or a regular expression that is searched in
            the path within the part, whose group `owner` (or first group) is the id.
        train: The folder to train on.
        validation: The folder to validate on; None to leave that out.
        test: The folder to test on.
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
        owner: str = "file",
        train: str = "train",
        validation: str | None = "val",
        test: str = "test",
        image_size: int = 224,
        augment: bool = True,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        self.folder = Path(folder)
        self.owner_of = OwnerRule(owner)
        self.names: dict[Part, str | None] = {"train": train, "val": validation, "test": test}
        self.reading = ImageReading(image_size, False, mean, std)
        self.train_reading = ImageReading(image_size, augment, mean, std)

    @property
    def classes(self) -> list[str]:
        """The names of the classes; a class's number is its place."""
        train = self.folder / str(self.names["train"])
        if not train.is_dir():
            raise DataError(
                f"There is no folder {train}. Expected images in {train}/CLASS/: check `folder` and `train`."
            )
        return sorted(path.name for path in train.iterdir() if path.is_dir())

    def load(self, part: Part) -> OwnedRows | None:
        """Load a part: its sorted paths; images are read when needed.

        Args:
            part: The part.

        Raises:
            DataError: A folder is missing or empty, a class is unknown, or an image has no owner.
        """
        name = self.names[part]
        if name is None:
            return None
        folder = self.folder / name
        classes = {label: number for number, label in enumerate(self.classes)}
        found = _annotated(folder) if (folder / ANNOTATIONS).is_file() else _sorted_images(folder)
        if not found:
            raise DataError(f"There are no images in {folder}. Expected {folder}/CLASS/*{ENDINGS[0]} or the like.")
        unknown = sorted({label for _, label in found} - classes.keys())
        if unknown:
            raise DataError(
                f"{folder} has classes that the train folder does not have: {', '.join(unknown[:5])}. Expected those "
                f"of {self.folder / str(self.names['train'])}: {', '.join(list(classes)[:5])}, ..."
            )
        owners = [self.owner_of(path.relative_to(folder).as_posix()) for path, _ in found] if part == "train" else None
        rows = [(path, classes[label]) for path, label in found]
        return OwnedRows(rows, owners, self.train_reading if part == "train" else self.reading)


class OwnerRule:
    r"""Determines the owner of an image from its path.

    Args:
        owner: "file", "folder" or a regular expression.

    Raises:
        ConfigurationError: The expression is invalid, or has no group.

    Example:
        >>> path = "cat/ann/ann-2024-1.png"
        >>> [OwnerRule(owner)(path) for owner in ("file", "folder", r"(?P<owner>[a-z]+)-\d+")]
        ['cat/ann/ann-2024-1.png', 'ann', 'ann']
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        if owner in ("file", "folder"):
            return
        try:
            self.pattern = re.compile(owner)
        except re.error as error:
            raise ConfigurationError(
                f"Expected argument `owner` to be 'file', 'folder' or a regular expression but got {owner!r}: {error}."
            ) from error
        if not self.pattern.groups:
            raise ConfigurationError(
                f"The regular expression {owner!r} in `owner` has no group. Put what is the owner in one: "
                r"'(?P<owner>[^/_]+)_\d+\.png'."
            )

    def __call__(self, path: str) -> str:
        """Return the owner's id.

        Args:
            path: Within the part, with slashes.

        Raises:
            DataError: The path does not say.
        """
        if self.owner == "file":
            return path
        if self.owner == "folder":
            parts = path.split("/")
            if len(parts) < 3:
                raise DataError(
                    f"The image {path} lies in no owner's folder. Expected CLASS/OWNER/image with owner='folder'."
                )
            return parts[1]
        match = self.pattern.search(path)
        found = match and match["owner" if "owner" in self.pattern.groupindex else 1]
        if not found:
            raise DataError(
                f"The regular expression {self.owner!r} finds no owner in {path}. Expected it to fit every image: "
                "change it, or rename the image."
            )
        return str(found)


def _sorted_images(folder: Path) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Expected images in {folder}/CLASS/.")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.parent != folder)
    # as text with slashes, so that the order is the same on every system
    return [(path, path.relative_to(folder).parts[0]) for path in sorted(paths, key=lambda path: path.as_posix())]


def _annotated(folder: Path) -> list[tuple[Path, str]]:
    """Read Tiny ImageNet's list, with one file and its class per line."""
    found = []
    for number, line in enumerate((folder / ANNOTATIONS).read_text().splitlines(), start=1):
        name, _, rest = line.partition("\t")
        path = folder / "images" / name
        if not rest or not path.is_file():
            raise DataError(
                f"Line {number} of {folder / ANNOTATIONS} is {line!r}. Expected the name of a file in "
                f"{folder / 'images'}, a tab and its class."
            )
        found.append((path, rest.split("\t")[0]))
    return sorted(found)
