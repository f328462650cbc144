"""What other processes are given: objects pickled once, their tensors in memory that all of the processes share.

Every process maps the memory for itself: what it writes there, only it sees (copy on write). So one unit cannot reach
another through the backbone, and as long as nobody writes, the backbone is there once.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Iterable, Mapping
from multiprocessing import reduction
from typing import IO, Any

import torch
from torch import Tensor

# that of torch's own memory: kernels may add up in another order where a tensor begins elsewhere
_ALIGNMENT = 64


class Package:
    """Objects on their way to other processes. Made by `pack`; give it to a process as an argument.

    Args:
        file: The shared memory.
        size: Its bytes.
        start: Where the pickle begins in it, behind the tensors.
        buffers: Where NumPy's arrays are: offset, bytes, whether they may be written.
        shared: Memory of a CUDA device that is shared between processes.
    """

    def __init__(
        self, file: IO[bytes], size: int, start: int, buffers: list[tuple[int, int, bool]], shared: list[Tensor]
    ) -> None:
        self._file = file
        self._size = size
        self._start = start
        self._buffers = buffers
        self._shared = shared

    def load(self) -> Any:
        """Makes the objects; in the process that they were sent to."""
        memory = memoryview(mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_COPY))
        buffers = [_view(memory, *place) for place in self._buffers]
        return _Unpickler(memory, self._start, buffers, self._shared).load()

    def close(self) -> None:
        """Gives the memory back, once all processes have loaded it or have ended."""
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        descriptor = reduction.DupFd(self._file.fileno())  # type: ignore[attr-defined]
        return _arrived, (descriptor, self._size, self._start, self._buffers, self._shared)


def pack(objects: Any, replace: Mapping[int, object], share: Iterable[Tensor] = ()) -> Package:
    """Pickles objects for other processes.

    Args:
        objects: What to send.
        replace: What goes in the place of objects that cannot be sent, by the `id` of those.
        share: Tensors on a CUDA device that all processes shall share; all others are copied.

    Raises:
        Exception: What pickle raises for an object that it cannot pickle.
    """
    file = _anonymous_file()
    pickler = _Pickler(file, replace, share)
    pickle_bytes = pickler.pickle(objects)
    start = file.tell()
    file.write(pickle_bytes)
    file.flush()
    return Package(file, file.tell(), start, pickler.buffers, pickler.shared)


def try_to_pack(objects: Any, replace: Mapping[int, object]) -> None:
    """Pickles objects without keeping the result, to see whether they can be sent.

    Args:
        objects: What to send.
        replace: As for `pack`.

    Raises:
        Exception: What pickle raises for an object that it cannot pickle.
    """
    _Pickler(None, replace, ()).pickle(objects)


class _Pickler(pickle.Pickler):
    def __init__(self, file: IO[bytes] | None, replace: Mapping[int, object], share: Iterable[Tensor]) -> None:
        self._stream = io.BytesIO()
        super().__init__(self._stream, protocol=5, buffer_callback=self._put_buffer)
        self._file = file
        self._replace = replace
        self._share = {tensor.untyped_storage()._cdata for tensor in share if tensor.is_cuda}
        self._storages: dict[int, tuple[Any, ...]] = {}
        self._kept: list[Any] = []  # while they live, no other has their address
        self.buffers: list[tuple[int, int, bool]] = []
        self.shared: list[Tensor] = []

    def pickle(self, objects: Any) -> bytes:
        self.dump(objects)
        return self._stream.getvalue()

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.storage.TypedStorage):
            return (*self._storage(obj._untyped_storage), obj.dtype)
        if isinstance(obj, torch.UntypedStorage):
            return (*self._storage(obj), None)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in self._replace:
            return _itself, (self._replace[id(obj)],)
        if isinstance(obj, types.MethodType):
            _check_method(obj)
        elif isinstance(obj, (type, types.FunctionType)) and obj.__module__ == "__main__":
            _check_main(obj)
        return NotImplemented

    def _storage(self, storage: torch.UntypedStorage) -> tuple[Any, ...]:
        found = self._storages.get(storage._cdata)
        if found is None:
            found = (len(self._storages), *self._put_storage(storage))
            self._storages[storage._cdata] = found
            self._kept.append(storage)
        return found

    def _put_storage(self, storage: torch.UntypedStorage) -> tuple[int, int, str, bool]:
        device, size = storage.device, storage.nbytes()
        if size == 0 or device.type == "meta" or self._file is None:
            return 0, size, str(device), False
        contents = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)  # type: ignore[call-overload]
        if storage._cdata in self._share:
            self.shared.append(contents)
            return len(self.shared) - 1, size, str(device), True
        return self._put(contents.cpu().numpy()), size, str(device), False

    def _put_buffer(self, buffer: Any) -> bool:
        with buffer.raw() as raw:
            self.buffers.append((self._put(raw), raw.nbytes, not raw.readonly))
        return False  # that is: not within the pickle

    def _put(self, contents: Any) -> int:
        if self._file is None:
            return 0
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        self._file.write(contents)
        return offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, memory: memoryview, start: int, buffers: list[memoryview], shared: list[Tensor]) -> None:
        super().__init__(io.BytesIO(memory[start:]), buffers=buffers)
        self._memory = memory
        self._shared = shared
        self._storages: dict[int, torch.UntypedStorage] = {}

    def persistent_load(self, pid: Any) -> Any:
        index, place, size, device, is_shared, dtype = pid
        if index not in self._storages:
            self._storages[index] = self._storage(place, size, device, is_shared)
        storage = self._storages[index]
        if dtype is None:
            return storage
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)

    def _storage(self, place: int, size: int, device: str, is_shared: bool) -> torch.UntypedStorage:
        if is_shared:
            return self._shared[place].untyped_storage()
        if size == 0 or device == "meta":
            return torch.UntypedStorage(size, device=device)
        contents = torch.frombuffer(self._memory, dtype=torch.uint8, count=size, offset=place)
        return contents.to(device).untyped_storage()


def _arrived(
    descriptor: Any, size: int, start: int, buffers: list[tuple[int, int, bool]], shared: list[Tensor]
) -> Package:
    return Package(os.fdopen(descriptor.detach(), "rb"), size, start, buffers, shared)


def _anonymous_file() -> IO[bytes]:
    # it may hold all of the training data: nothing of it may stay behind when a process is killed
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("lightning_s3t"), "w+b")
    return tempfile.TemporaryFile()


def _view(memory: memoryview, offset: int, size: int, writable: bool) -> memoryview:
    view = memory[offset : offset + size]
    return view if writable else view.toreadonly()


def _itself(stand_in: object) -> object:
    return stand_in


def _check_method(method: types.MethodType) -> None:
    # pickle sends a name: the class's own method would silently come out where somebody has put another on the object
    owner, function = method.__self__, method.__func__
    kind = owner if isinstance(owner, type) else type(owner)
    found = getattr(kind, function.__name__, None)
    if getattr(found, "__func__", found) is not function:
        raise pickle.PicklingError(
            f"method {function.__name__} of {type(owner).__name__} was put on the object, so that it is not the one "
            "that its class has"
        )


def _check_main(found: Any) -> None:
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None:
        raise pickle.PicklingError(f"{found.__qualname__} is defined in a notebook or on the command line, in no file")
