"""Small local copies of what the data modules read, in the same formats."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), value, dtype=np.uint8)).save(path)


def write_image_folder(folder: Path, rows: int = 8) -> Path:
    """Two classes, dark and light; each image lies in the folder of one of `rows / 2` owners."""
    for part in ("train", "val", "test"):
        for row in range(rows):
            for value, label in ((30, "dark"), (220, "light")):
                write_image(folder / part / label / f"owner-{row // 2}" / f"image-{row}.png", value + row % 30)
    return folder


def write_tiny_imagenet(folder: Path, rows: int = 8) -> Path:
    """As the archive has it: labelled folders to train on, a list of labels to validate on, no labels to test on."""
    classes = ("n01443537", "n01629819")
    for label in classes:
        for row in range(rows):
            write_image(folder / "train" / label / "images" / f"{label}_{row}.JPEG", 100 + row)
        (folder / "train" / label / f"{label}_boxes.txt").write_text(f"{label}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for row in range(rows):
        write_image(folder / "val" / "images" / f"val_{row}.JPEG", row)
        lines.append(f"val_{row}.JPEG\t{classes[row % 2]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(folder / "test" / "images" / "test_0.JPEG", 1)
    return folder


def write_cifar(folder: Path, classes: int = 10, rows: int = 20) -> Path:
    """Batches as torchvision downloads them: image `n` of the train files has the label `n % classes`."""
    if classes == 10:
        names, place, key = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"], "batches-py", b"labels"
    else:
        names, place, key = ["train", "test"], "python", b"fine_labels"
    target = folder / f"cifar-{classes}-{place}"
    target.mkdir(parents=True)
    generator, start = np.random.default_rng(0), 0
    for name in names:
        count = rows if "test" in name else rows // (len(names) - 1)
        labels = [number % classes for number in range(start, start + count)]
        start += count if "test" not in name else 0
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        (target / name).write_bytes(pickle.dumps({b"data": data, key: labels, b"batch_label": b"made up"}, protocol=2))
    return folder


def write_tokenizer(folder: Path) -> str:
    """A tokenizer of bytes, which needs no vocabulary file: byte `b` is the token `b + 3`, 0 pads, 1 ends."""
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


VOCABULARY = 384
"""How many tokens that tokenizer has."""


def write_lines(path: Path, records: list[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
