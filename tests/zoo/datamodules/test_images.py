"""Images in folders, Tiny ImageNet's layout, and CIFAR's files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_s3t.errors import ConfigurationError, DataError
from lightning_s3t.zoo.datamodules import CIFARData, ImageFolderData
from tests.zoo.datamodules.local import write_cifar, write_image, write_image_folder, write_tiny_imagenet


def folder_data(folder: Path, **arguments: Any) -> ImageFolderData:
    return ImageFolderData(folder, **{"image_size": 16, "augment": False, **arguments})


def test_classes_are_the_sorted_names_of_folders(tmp_path: Path) -> None:
    data = folder_data(write_image_folder(tmp_path))
    assert data.classes == ["dark", "light"]
    train = data.rows("train")
    assert train is not None
    assert len(train) == 16
    for image, label in train:  # type: ignore[attr-defined]
        assert image.shape == (3, 16, 16)
        assert (image.mean() > 0) == (label == 1)


def test_paths_are_sorted_whatever_order_they_were_written_in(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/9.png", "b/1.png", "a/10.png"):
        write_image(tmp_path / "train" / name, 1)
    rows = folder_data(tmp_path, validation=None).rows("train")
    assert rows is not None
    assert rows.owners == ["a/10.png", "a/9.png", "b/1.png", "b/2.png"]


def test_the_owner_is_a_folder_a_part_of_the_name_or_the_file(tmp_path: Path) -> None:
    write_image_folder(tmp_path, rows=2)
    owners = {
        "folder": ["owner-0"] * 4,
        r"image-(\d)": ["0", "1", "0", "1"],
        r"(x)?(?P<owner>dark|light)": ["dark", "dark", "light", "light"],
    }
    for owner, expected in owners.items():
        rows = folder_data(tmp_path, owner=owner).rows("train")
        assert rows is not None
        assert rows.owners == expected


@pytest.mark.parametrize(
    ("owner", "message"), [("[", "a regular expression but got '\\['"), ("image", "'image' in `owner` has no group")]
)
def test_an_expression_that_names_no_subject_is_refused(tmp_path: Path, owner: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        folder_data(tmp_path, owner=owner)


def test_an_image_without_an_owner_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "train/cat/stray.png", 1)
    with pytest.raises(DataError, match=r"cat/stray.png lies in no owner's folder"):
        folder_data(tmp_path, owner="folder").rows("train")
    with pytest.raises(DataError, match=r"finds no owner in cat/stray.png"):
        folder_data(tmp_path, owner=r"user-(\d+)").rows("train")


def test_folders_that_are_missing_or_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*train"):
        folder_data(tmp_path).rows("train")
    write_image(tmp_path / "train/cat/1.png", 1)
    with pytest.raises(DataError, match=r"There is no folder .*val"):
        folder_data(tmp_path).rows("val")
    write_image(tmp_path / "val/dog/1.png", 1)
    with pytest.raises(DataError, match="classes that the train folder does not have: dog"):
        folder_data(tmp_path).rows("val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty"):
        folder_data(tmp_path, test="empty").rows("test")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "train/cat/1.png", 1)
    (tmp_path / "train/cat/1.png").write_text("not an image")
    rows = folder_data(tmp_path, validation=None).rows("train")
    assert rows is not None
    with pytest.raises(DataError, match=r"cat/1.png cannot be read"):
        rows[0]


def test_augmentation_draws_from_the_seed_alone(tmp_path: Path) -> None:
    train = folder_data(write_image_folder(tmp_path), augment=True).rows("train")
    write_image(tmp_path / "train/dark/owner-0/image-0.png", 0)
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(tmp_path / "train/dark/owner-0/image-0.png")
    assert train is not None
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images.append(train[0][0])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_tiny_imagenets_validation_labels_are_in_a_list(tmp_path: Path) -> None:
    data = folder_data(write_tiny_imagenet(tmp_path), test="val")
    train, validation = data.rows("train"), data.rows("val")
    assert train is not None
    assert validation is not None
    assert len(train) == 16
    assert [label for _, label in train.rows] == [0] * 8 + [1] * 8
    assert [label for _, label in validation.rows] == [0, 1] * 4
    assert len(data.test_dataloader().dataset) == 8  # type: ignore[arg-type]


def test_a_line_of_that_list_without_a_file_is_named(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    with (tmp_path / "val/val_annotations.txt").open("a") as file:
        file.write("lost.JPEG\tn01443537\n")
    with pytest.raises(DataError, match=r"Line 9 of .*lost.JPEG"):
        folder_data(tmp_path).rows("val")


@pytest.mark.parametrize("classes", [10, 100])
def test_cifars_files_are_read_in_order(tmp_path: Path, classes: Any) -> None:
    data = CIFARData(write_cifar(tmp_path, classes), classes, validation_rows=4, image_size=8, augment=False)
    train, validation, test = data.rows("train"), data.rows("val"), data.rows("test")
    assert train is not None
    assert validation is not None
    assert test is not None
    assert [len(train), len(validation), len(test)] == [16, 4, 20]
    assert train.owners == [str(number) for number in range(4, 20)]
    assert [label for _, label in train.rows] == [number % classes for number in range(4, 20)]
    assert train[0][0].shape == (3, 8, 8)


def test_without_held_out_rows_cifar_has_none_to_validate_on(tmp_path: Path) -> None:
    data = CIFARData(write_cifar(tmp_path), validation_rows=0)
    train = data.rows("train")
    assert train is not None
    assert len(train) == 20
    assert data.val_dataloader() == []


def test_cifars_pixels_are_where_torchvision_has_them(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    stored = pickle.loads((tmp_path / "cifar-10-batches-py/test_batch").read_bytes())[b"data"]
    rows = CIFARData(tmp_path, image_size=32).rows("test")
    assert rows is not None
    image = rows[0][0]
    assert image[0, 0, 1] == pytest.approx(stored[0][1] / 255 * 2 - 1)
    assert image[2, 1, 0] == pytest.approx(stored[0][2 * 1024 + 32] / 255 * 2 - 1)


def test_cifars_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*data_batch_1.*set download=True"):
        CIFARData(tmp_path).rows("train")
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(DataError, match="test_batch is not a batch of CIFAR-10"):
        CIFARData(tmp_path).rows("test")
    with pytest.raises(ConfigurationError, match="`classes` to be 10 or 100 but got 20"):
        CIFARData(tmp_path, classes=20)  # type: ignore[arg-type]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harmed"),)

    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({b"data": Harm(), b"labels": []}))
    with pytest.raises(DataError, match=r"asks for posix.mkdir"):
        CIFARData(tmp_path).rows("test")
    assert not (tmp_path / "harmed").exists()
