"""Random numbers that depend only on the root seed and a unit's coordinates."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lightning_s3t.plan import UnitId


def derive_seed(seed: int, *labels: object) -> int:
    """Derive an independent seed from a root seed and labels.

    A hash instead of a sum: neighbouring roots and neighbouring units must not share streams. The labels are
    coordinates and names; sizes and contents of data never go in, or a deletion would move every later draw.

    Args:
        seed: The root seed.
        labels: The purpose of the derived seed; their `str` is used.

    Returns:
        A non-negative integer below 2**63.

    Example:
        >>> derive_seed(0, "init", "blocks.1") == derive_seed(0, "init", "blocks.1")
        True
        >>> derive_seed(0, "init", "blocks.1") == derive_seed(0, "init", "blocks.11")
        False
    """
    text = "\x1f".join([str(int(seed)), *map(str, labels)])
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"s3t-seed").digest()
    return int.from_bytes(digest, "big") >> 1


def unit_seed(seed: int, unit: UnitId) -> int:
    """Return the seed of all randomness of a unit.

    Args:
        seed: The root seed of the store.
        unit: The unit.

    Example:
        >>> unit_seed(0, UnitId(0, (1, 2))) == unit_seed(0, UnitId(0, (1, 2)))
        True
    """
    return derive_seed(seed, "unit", str(unit))


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device.

    Unlike `lightning.seed_everything` it leaves the environment variables alone.

    Args:
        seed: Any non-negative integer.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_running(seed: int) -> None:
    """Seed the same generators as `seed_all`, but for those of devices that have not been used yet.

    Many times faster where there is none: torch notes each call for the day that one is used, with a stack trace.

    Args:
        seed: Any non-negative integer.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """Run a block with generators of its own; the global ones continue afterwards as if nothing had happened.

    Args:
        seed: The seed inside the block; None leaves the generators as they are.

    Example:
        >>> _ = torch.manual_seed(1)
        >>> with seeded(7):
        ...     inside = torch.rand(1)
        >>> _ = torch.manual_seed(1)
        >>> first = torch.rand(1)
        >>> with seeded(7):
        ...     bool(torch.rand(1) == inside)
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                seed_all(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def seed_generator(generator: Any, seed: int) -> None:
    """Seed a random generator of torch, NumPy or Python.

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
