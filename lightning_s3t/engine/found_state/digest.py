"""Digests of everything that a script's objects hold, by path."""

from __future__ import annotations

import bisect
import collections
import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from lightning_s3t.engine.found_state.contents import ATOMS, GENERATORS, class_name, content_of, plain_bytes
from lightning_s3t.engine.found_state.reading import FUNCTIONS, MANY, Reader

AnyGenerator: TypeAlias = "torch.Generator | random.Random | np.random.Generator | np.random.RandomState"
# of longer paths the middle is left out: those of a linked list would fill the memory
_LONGEST = 300


def digest_state(roots: Mapping[str, object], ignore: Collection[int] = ()) -> dict[str, str]:
    """Return a digest of everything that can be reached from objects, by path.

    Goes through containers, attributes, slots, closures, defaults, partials, bound methods and iterators. No code of
    the objects' classes runs (no property, no `__getattr__`, no `__iter__`, no `__repr__`), and no generator or
    iterator moves. The digests are the same in every process in which the objects were made in the same way.

    It does not cover global variables of modules, class attributes, the contents of files, sockets, threads, processes
    or databases, and memory of extension types that Python's garbage collector does not know. Of a tensor or an array
    above 1 MB, about 65,000 elements are compared. The global random generators, trainers and weak references are left
    out.

    Args:
        roots: The objects to start from, by name.
        ignore: The `id` of objects that are not looked at.

    Returns:
        16 hexadecimal digits by path. Each object is walked once, by its shortest path; any other path to it records
        only the object's identity.

    Example:
        >>> from functools import partial
        >>> state = {"rng": random.Random(0), "seen": [1, 2]}
        >>> before = digest_state({"collate_fn": partial(print, **state)})
        >>> list(before)[-2:]
        ["collate_fn.keywords['rng']", "collate_fn.keywords['seen']"]
        >>> state["seen"].append(3)
        >>> changed(before, digest_state({"collate_fn": partial(print, **state)}))
        ["collate_fn.keywords['seen']"]
    """
    classes: dict[int, tuple[type, bytes, Callable[[Any], bytes]]] = {}
    found = {}
    for path, value, own in _walk(roots, ignore):
        cls = type(value)
        if id(cls) not in classes:
            classes[id(cls)] = cls, class_name(cls).encode() + b"\0", content_of(cls)
        _, name, content = classes[id(cls)]
        digest = hashlib.blake2b(name, digest_size=8)
        digest.update(own)
        if cls not in ATOMS:
            digest.update(content(value))
        found[path] = digest.hexdigest()
    return found


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the paths at which two digests differ.

    Args:
        before: The result of `digest_state`.
        after: Its result later, or in another process.

    Returns:
        The paths that differ, appeared or disappeared, sorted. A path is left out if its parts show the change: an
        object that appeared or disappeared, a container with other elements.

    Example:
        >>> changed({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
        ['b', 'c']
    """
    moved = sorted(before.keys() ^ after.keys())

    def has_below(path: str, separators: str) -> bool:
        places = [(bisect.bisect_left(moved, path + separator), path + separator) for separator in separators]
        return any(place < len(moved) and moved[place].startswith(below) for place, below in places)

    different = [path for path, digest in before.items() if after.get(path, digest) != digest]
    # a tensor's gradient may appear while the tensor changes too, but the elements of a container are part of it
    kept = [path for path in moved if not has_below(path, " .[{")]
    return sorted(kept + [path for path in different if not has_below(path, "[{")])


def find_generators(roots: Mapping[str, object]) -> dict[str, AnyGenerator]:
    """Find the random generators of torch, NumPy and Python that can be reached from objects.

    Args:
        roots: The objects to start from, by name.

    Returns:
        Each generator once, by path; not the global ones.

    Example:
        >>> class Augmented:
        ...     def __init__(self):
        ...         self.transforms = [np.random.default_rng(0)]
        >>> list(find_generators({"dataset": Augmented()}))
        ['dataset.transforms[0]']
    """
    return {path: value for path, value, _ in _walk(roots, ()) if issubclass(type(value), GENERATORS)}  # type: ignore[misc]


def _walk(roots: Mapping[str, object], ignore: Collection[int]) -> Iterator[tuple[str, object, bytes]]:
    """Yield each path with its object and with the plain values that the object holds, the shortest paths first."""
    reader = Reader()
    ignored = {*ignore, *map(id, _global_generators())}
    seen: dict[int, str] = {}
    alive: list[object] = []  # objects created on the way: while they live, no other object has their id
    used: dict[str, int] = {}
    # the start of a path, its number of omitted levels, its next part, the object, its bytes if it is a plain value,
    # and whether plain values are grouped
    starts = zip(roots.items(), plain_bytes(roots.values()), strict=True)
    queue = collections.deque((name, 0, "", value, plain, False) for (name, value), plain in starts)
    while queue:
        start, left_out, suffix, value, plain, grouped = queue.popleft()
        layout = reader.layout(type(value)) if plain is None else None
        if id(value) in ignored or (layout is not None and layout.skipped):
            continue
        path = f"{start} ... {left_out} levels below{suffix}" if left_out else start + suffix
        used[path] = used.get(path, 0) + 1
        if used[path] > 1:
            path = f"{path} #{used[path]}"
        if layout is None:
            yield path, value, plain or b""
        elif layout.is_value:
            yield path, value, b""
        elif id(value) in seen:
            yield path, None, f"the same as {seen[id(value)]}".encode()
        else:
            own, parts = reader.read(value, grouped)
            yield path, value, own
            # a function without state is a value: one that many objects use is not the first one's
            if parts or not issubclass(type(value), FUNCTIONS):
                seen[id(value)] = path
                alive.append(value)
            grouped = grouped or len(parts) > MANY
            start, left_out = (start, left_out + 1) if left_out or len(path) > _LONGEST else (path, 0)
            held = zip(parts, plain_bytes(part for _, part in parts), strict=True)
            queue.extend((start, left_out, name, part, plain, grouped) for (name, part), plain in held)


def _global_generators() -> list[object]:
    """Return the generators that a fit seeds and restores itself."""
    arrays = np.random.mtrand._rand
    return [random._inst, arrays, arrays._bit_generator, torch.default_generator, *torch.cuda.default_generators]  # type: ignore[attr-defined]
