"""Generations: who came to a store together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from lightning_s3t.core.documents import STRICT, canonical, read_json


@dataclass(frozen=True)
class Generation:
    """Subjects who came together. The first, number 0, is cut into all shards; each later one is a shard of its own.

    Attributes:
        opened: When its first subjects were registered (UTC, ISO 8601).
        closed: Whether something was trained on it: who comes now is of another one.
    """

    __pydantic_config__ = STRICT

    opened: str
    closed: bool = False


@dataclass(frozen=True)
class _Note:
    __pydantic_config__ = STRICT

    generations: tuple[Generation, ...]


def write_generations(generations: Iterable[Generation]) -> str:
    """Return what a store notes of its generations.

    Args:
        generations: All of them, from number 0 on.

    Example:
        >>> write_generations([Generation("2027-01-31T12:00:00+00:00")])
        '{"generations":[{"closed":false,"opened":"2027-01-31T12:00:00+00:00"}]}'
    """
    return canonical({"generations": [asdict(generation) for generation in generations]})


def read_generations(text: str) -> tuple[Generation, ...]:
    """Read what `write_generations` has given.

    Args:
        text: The note.

    Raises:
        ValueError: It is something else.
    """
    return read_json(_Note, text).generations
