"""Seeds for random generators that a script's own objects hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def seed_generator(generator: Any, seed: int) -> None:
    """Seeds a random generator of torch, NumPy or Python.

    Args:
        generator: The generator.
        seed: A non-negative integer.

    Example:
        >>> import random
        >>> generator = random.Random()
        >>> seed_generator(generator, 1)
        >>> generator.random() == random.Random(1).random()
        True
    """
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed % 2**32)
    else:
        generator.seed(seed)
