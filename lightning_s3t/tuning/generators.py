"""Random generators that a script's own objects hold."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def find_generators(roots: Mapping[str, object], depth: int = 4) -> list[tuple[str, Any]]:
    """Finds the random generators of torch, NumPy and Python that objects hold.

    Args:
        roots: Where to look, by name.
        depth: How many attributes or elements deep. Of a list, the first hundred elements are looked at.

    Returns:
        Each generator once, with its path.

    Example:
        >>> class Augmented:
        ...     def __init__(self):
        ...         self.transforms = [np.random.default_rng(0)]
        >>> [path for path, _ in find_generators({"dataset": Augmented()})]
        ['dataset.transforms.0']
    """
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()

    def visit(path: str, instance: object, left: int) -> None:
        if id(instance) in seen:
            return
        seen.add(id(instance))
        if isinstance(instance, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
            found.append((path, instance))
        elif left > 0 and isinstance(instance, Mapping):
            for key, value in list(instance.items())[:100]:
                visit(f"{path}.{key}", value, left - 1)
        elif left > 0 and isinstance(instance, (list, tuple)):
            for index, value in enumerate(instance[:100]):
                visit(f"{path}.{index}", value, left - 1)
        elif left > 0 and not isinstance(instance, (torch.Tensor, np.ndarray)):
            for key, value in getattr(instance, "__dict__", {}).items():
                visit(f"{path}.{key}", value, left - 1)

    for path, root in roots.items():
        visit(path, root, depth)
    return found


def seed_generator(generator: Any, seed: int) -> None:
    """Seeds a random generator of torch, NumPy or Python.

    Args:
        generator: The generator.
        seed: A non-negative integer.

    Example:
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
