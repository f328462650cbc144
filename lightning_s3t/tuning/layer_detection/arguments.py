"""Arguments of S3T that name layers and a head, to paste into a script."""

from __future__ import annotations

from collections.abc import Sequence


def as_arguments(layers: str | Sequence[str], head: Sequence[str]) -> str:
    """Return the arguments that name layers and a head, as they are written in a script.

    Args:
        layers: The path of a list of blocks, or the blocks' paths.
        head: The head's paths; empty if unknown.

    Example:
        >>> as_arguments(["conv1", "conv2"], ["fc"]), as_arguments(["a"], [])
        ("layers=['conv1', 'conv2'], head='fc'", "layers=['a'], head='...'")
    """
    shown = layers if isinstance(layers, str) else list(layers)
    named = repr(head[0]) if len(head) == 1 else repr(list(head)) if head else "'...'"
    return f"layers={shown!r}, head={named}"
