"""Activations of rows, kept in memory or in files for as long as a fit runs."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lightning_s3t.errors import CacheError

_FIRST, _LARGEST, _ALIGNED = 1 << 20, 1 << 26, 64  # bytes


class Buffers(Protocol):
    """Where activations are kept."""

    def make(self, size: int) -> Tensor | None:
        """Returns new bytes to write into; None where nothing may be kept at present."""

    def available(self) -> int | None:
        """Returns how many bytes are free; None if nobody knows."""

    def renew(self) -> bool:
        """Makes a fresh place if the old one was taken away; says whether it was."""

    def close(self) -> None:
        """Removes everything."""


class MemoryBuffers:
    """Keeps activations in the host's memory."""

    def make(self, size: int) -> Tensor | None:
        """Returns new bytes to write into.

        Args:
            size: How many.
        """
        return torch.empty(size, dtype=torch.uint8)

    def available(self) -> int | None:
        """Returns how much memory is free, for this process's container; None if the system does not say."""
        return free_memory()

    def renew(self) -> bool:
        """Does nothing: nobody else takes memory away."""
        return False

    def close(self) -> None:
        """Does nothing."""


class FileBuffers:
    """Keeps activations in memory-mapped files.

    Whoever removes the folder ends that: what is mapped stays readable, but no file can be made in a folder that is
    gone, so that nothing which a deletion request has erased can come back. `renew` makes another.

    Args:
        parent: The folder to make a folder in.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._number = 0
        self._open()

    def make(self, size: int) -> Tensor | None:
        """Returns new bytes to write into; None if the folder is gone.

        Args:
            size: How many.

        Raises:
            CacheError: The disk is full, or cannot be written.
        """
        self._number += 1
        name = f"{self._number}.activations"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            file = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(_unwritable(self.path, error)) from error
        try:
            os.posix_fallocate(file, 0, size)  # a full disk shows here, and not as a signal when the map is written
            return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
        except OSError as error:
            raise CacheError(_unwritable(self.path, error)) from error
        finally:
            os.close(file)

    def available(self) -> int | None:
        """Returns how much the disk has left."""
        try:
            return shutil.disk_usage(self._parent).free
        except OSError:  # just removed
            return None

    def renew(self) -> bool:
        """Makes another folder if the old one is gone; says whether it was."""
        if self.path.exists():
            return False
        os.close(self._descriptor)
        self._open()
        return True

    def close(self) -> None:
        """Removes the folder."""
        os.close(self._descriptor)
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self._parent.rmdir()
        except OSError:  # another process has something there
            return

    def _open(self) -> None:
        while True:
            try:
                self._parent.mkdir(mode=0o700, exist_ok=True)
                self.path = Path(tempfile.mkdtemp(dir=self._parent))
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:  # removed in between
                if not self._parent.parent.exists():
                    raise
                continue
            except OSError as error:
                raise CacheError(_unwritable(self._parent, error)) from error
            return


@dataclass
class _Chunk:
    buffer: Tensor
    used: int = 0
    keys: list[Hashable] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    chunk: _Chunk
    offset: int
    size: int
    dtype: torch.dtype
    shape: torch.Size


class Activations:
    """Named tensors by key. When there is no room for more, the oldest go.

    Args:
        buffers: Where they are kept.

    Attributes:
        limit: How many bytes may be held, in round numbers.

    Example:
        >>> kept = Activations(MemoryBuffers())
        >>> kept.put("a row", {"x": torch.ones(1, 2)})
        >>> kept.get("a row")["x"]
        tensor([[1., 1.]])
        >>> kept.get("another") is None
        True
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._chunks: deque[_Chunk] = deque()
        self._places: dict[Hashable, dict[str, _Place]] = {}
        self.limit = _LARGEST

    @property
    def held(self) -> int:
        """How many bytes are held."""
        return sum(len(chunk.buffer) for chunk in self._chunks)

    def available(self) -> int | None:
        """Returns how many bytes may be held in all; None if nobody knows."""
        free = self._buffers.available()
        return None if free is None else free + self.held

    def get(self, key: Hashable) -> dict[str, Tensor] | None:
        """Returns what is kept under a key, not to be written to; None if nothing is.

        Args:
            key: The key.
        """
        places = self._places.get(key)
        if places is None:
            return None
        return {
            name: place.chunk.buffer[place.offset : place.offset + place.size].view(place.dtype).view(place.shape)
            for name, place in places.items()
        }

    def put(self, key: Hashable, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors, if there is a place for them.

        Args:
            key: The key.
            tensors: Contiguous tensors on the CPU, by name.
        """
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
        chunk = self._chunk(sum(_aligned(size) for size in sizes.values()))
        if chunk is None:
            return
        places = {}
        for name, tensor in tensors.items():
            place = _Place(chunk, chunk.used, sizes[name], tensor.dtype, tensor.shape)
            chunk.buffer[place.offset : place.offset + place.size] = tensor.reshape(-1).view(torch.uint8)
            chunk.used += _aligned(place.size)
            places[name] = place
        self._places[key] = places
        chunk.keys.append(key)

    def renew(self) -> None:
        """Drops everything if its place was taken away, and begins anew."""
        if self._buffers.renew():
            self._drop()

    def close(self) -> None:
        """Drops and removes everything."""
        self._drop()
        self._buffers.close()

    def _drop(self) -> None:
        self._chunks.clear()
        self._places.clear()

    def _chunk(self, size: int) -> _Chunk | None:
        if self._chunks and self._chunks[-1].used + size <= len(self._chunks[-1].buffer):
            return self._chunks[-1]
        while self._chunks and self.held + size > self.limit:
            oldest = self._chunks.popleft()
            for key in oldest.keys:
                places = self._places.get(key, {})
                if any(place.chunk is oldest for place in places.values()):
                    del self._places[key]
        wanted = min(max(_FIRST, self.held), _LARGEST, max(_FIRST, self.limit - self.held))
        buffer = self._buffers.make(max(size, wanted))
        if buffer is None:
            return None
        self._chunks.append(_Chunk(buffer))
        return self._chunks[-1]


def free_memory() -> int | None:
    """Returns how much memory is free, for this process's container; None if the system does not say."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, min(found)) if found else None


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"Activations cannot be kept in {path} ({error.strerror}). Free the disk, or use cache='memory' or cache=None."
    )
