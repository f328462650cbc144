"""From images to tensors: crops and flips for training, a fixed crop otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms

from lightning_s3t.errors import ConfigurationError, DataError

HALF = (0.5, 0.5, 0.5)
"""The mean and the deviation that the vision transformers of "An Image is Worth 16x16 Words" were trained with."""


class ImageReading:
    """Makes (tensor, label) of (file or array, label).

    Random numbers come from torch's global generator, which S3T seeds for each unit.

    Args:
        size: The image's height and width.
        augment: Whether to crop and flip at random; otherwise an image is resized and cropped at the centre.
        mean: The mean to subtract from each channel.
        std: The standard deviation to divide each channel by.

    Raises:
        ConfigurationError: The size is not positive.

    Example:
        >>> read = ImageReading(size=16)
        >>> image, label = read((np.full((32, 32, 3), 255, dtype=np.uint8), 7))
        >>> image.shape, float(image.max()), label
        (torch.Size([3, 16, 16]), 1.0, 7)
    """

    def __init__(
        self, size: int, augment: bool = False, mean: Sequence[float] = HALF, std: Sequence[float] = HALF
    ) -> None:
        if size < 1:
            raise ConfigurationError(f"Expected argument `image_size` to be 1 or more but got {size}.")
        steps: list[Any] = (
            [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
            if augment
            else [transforms.Resize(size), transforms.CenterCrop(size)]
        )
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __call__(self, row: tuple[Path | np.ndarray[Any, Any], int]) -> tuple[Tensor, int]:
        """Reads an image.

        Args:
            row: A file or an array `[height, width, 3]` of bytes, and its label.

        Raises:
            DataError: The file cannot be read.
        """
        source, label = row
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        else:
            try:
                image = Image.open(source).convert("RGB")
            except (UnidentifiedImageError, OSError) as error:
                raise DataError(
                    f"The image {source} cannot be read ({error}). Expected a file that Pillow reads: mend it, or take "
                    "it out of the folder."
                ) from error
        tensor: Tensor = self.transform(image)
        return tensor, label
