"""Generations: subjects who came to a store together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from lightning_s3t.core.documents import STRICT, canonical, read_json


@dataclass(frozen=True)
class Generation:
    """Subjects who came together. Number 0 is divided into the shards; each later one is a shard of its own.

    Attributes:
        opened: When its first subjects were registered (UTC, ISO 8601).
        closed: Whether a unit was trained on it: subjects who come now belong to a later generation.
    """

    __pydantic_config__ = STRICT

    opened: str
    closed: bool = False


@dataclass(frozen=True)
class _Note:
    __pydantic_config__ = STRICT

    generations: tuple[Generation, ...]


def write_generations(generations: Iterable[Generation]) -> str:
    """Return a store's record of its generations.

    Args:
        generations: All of them, from number 0 on.

    Example:
        >>> write_generations([Generation("2027-01-31T12:00:00+00:00")])
        '{"generations":[{"closed":false,"opened":"2027-01-31T12:00:00+00:00"}]}'
    """
    return canonical({"generations": [asdict(generation) for generation in generations]})


def read_generations(text: str) -> tuple[Generation, ...]:
    """Read the output of `write_generations`.

    Args:
        text: The record.

    Raises:
        ValueError: It is something different.
    """
    return read_json(_Note, text).generations
