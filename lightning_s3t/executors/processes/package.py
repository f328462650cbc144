"""The memory in which objects are sent to the fork server. Imports no torch, since it is needed before there is one."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import IO, Any

Header = tuple[int, int, list[tuple[int, int, bool]]]
"""The layout of a package's memory."""


class Package:
    """Objects on their way to another process. Made by `packing.pack`.

    Args:
        file: The shared memory.
        header: Its layout: its size, the start of the pickle behind the tensors, and for each NumPy array its offset,
            its bytes and whether it is writable.
        on_device: Whether tensors of it were on an accelerator, and go there when the package is loaded.
    """

    def __init__(self, file: IO[bytes], header: Header, on_device: bool) -> None:
        self.file = file
        self.header = header
        self.on_device = on_device

    @classmethod
    def of(cls, contents: Any, header: Header, on_device: bool) -> Package:
        """Return the package that another machine has sent.

        Args:
            contents: Its memory: a buffer.
            header: As there.
            on_device: As there.
        """
        file = anonymous_file()
        file.write(contents)
        file.flush()
        return cls(file, header, on_device)

    def contents(self) -> memoryview:
        """Return its memory, to be sent to another machine."""
        return memoryview(mmap.mmap(self.file.fileno(), self.header[0], access=mmap.ACCESS_READ))

    def load(self) -> Any:
        """Unpickle the objects in the receiving process."""
        from lightning_s3t.executors.processes.packing import unpickle

        size, start, places = self.header
        memory = memoryview(mmap.mmap(self.file.fileno(), size, access=mmap.ACCESS_COPY))
        return unpickle(memory, memory[start:], [_view(memory, *place) for place in places])

    def close(self) -> None:
        """Release the memory, once the other process has it."""
        self.file.close()


def anonymous_file() -> IO[bytes]:
    """Return a file without a name, in memory where the system has such files."""
    # it may hold all of the training data: nothing of it may stay behind when a process is killed
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("lightning_s3t"), "w+b")
    return tempfile.TemporaryFile()


def _view(memory: memoryview, offset: int, size: int, writable: bool) -> memoryview:
    view = memory[offset : offset + size]
    return view if writable else view.toreadonly()
