"""The objects that are sent to the fork server: pickled once, with their tensors in memory that all processes share.

Every process maps the memory privately: only it sees its own writes (copy on write). So one unit cannot reach another
through the backbone, and while no process writes to it, the backbone exists only once.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import IO, Any, cast

import cloudpickle
import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.eval_frame import OptimizeContext
from torch.nn.utils import parametrize

from lightning_s3t.executors.processes.package import Package, anonymous_file
from lightning_s3t.tuning.compiled import compile_arguments

# that of torch's own memory: kernels may add up in another order where a tensor begins elsewhere
_ALIGNMENT = 64


def pack(objects: Any, replace: Mapping[int, object]) -> Package:
    """Pickle objects for another process.

    Functions and classes that cannot be imported there (those of a script, a notebook, a function) are sent by value.

    Args:
        objects: The objects to send.
        replace: Replacements for objects that are not sent, by their `id`.

    Raises:
        Exception: Pickle's error for an object that it cannot pickle.
    """
    file = anonymous_file()
    pickler = _Pickler(file, replace)
    contents = pickler.pickle(objects)
    start = file.tell()
    file.write(contents)
    file.flush()
    return Package(file, (file.tell(), start, pickler.buffers), pickler.on_device)


def unpickle(memory: memoryview, contents: memoryview, buffers: list[memoryview]) -> Any:
    """Unpickle packed objects.

    Args:
        memory: The memory of their tensors.
        contents: The pickle.
        buffers: The memory of their NumPy arrays.
    """
    with _loading_from(memory):
        return pickle.Unpickler(io.BytesIO(contents), buffers=buffers).load()


def try_to_pack(objects: Any, replace: Mapping[int, object]) -> None:
    """Pickle objects without keeping the result, to see whether they can be sent.

    Args:
        objects: The objects to send.
        replace: As for `pack`.

    Raises:
        Exception: Pickle's error for an object that it cannot pickle.
    """
    _Pickler(None, replace).pickle(objects)


def find_unpicklable(
    parts: Mapping[str, object], replace: Mapping[int, object]
) -> tuple[str, object, Exception] | None:
    """Find the innermost object that cannot be pickled and can be named.

    Args:
        parts: Objects by name; they may refer to each other.
        replace: As for `pack`.

    Returns:
        Its path, itself and why; None if all can be pickled.

    Example:
        >>> import threading, types
        >>> holder = types.SimpleNamespace(transform={"train": threading.Lock()})
        >>> find_unpicklable({"data": holder}, {})[0]
        "data.transform['train']"
    """
    known = {**replace, **{id(part): None for part in parts.values()}}
    for name, part in parts.items():
        inside = {key: value for key, value in known.items() if key != id(part)}
        error = _error(part, inside)
        if error is not None:
            return _descend(name, part, error, known)
    return None


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: IO[bytes] | None, replace: Mapping[int, object]) -> None:
        self._stream = io.BytesIO()
        super().__init__(self._stream, protocol=5, buffer_callback=self._put_buffer)
        self._file = file
        self._replace = replace
        self._storages: dict[int, tuple[Any, ...]] = {}
        self._kept: list[Any] = []  # while they live, no other has their address
        self.buffers: list[tuple[int, int, bool]] = []
        self.on_device = False

    def pickle(self, objects: Any) -> bytes:
        with _main_by_value():
            self.dump(objects)
        return self._stream.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        if id(obj) in self._replace:
            return _itself, (self._replace[id(obj)],)
        if isinstance(obj, torch.storage.TypedStorage):
            return _typed_storage, (*self._storage(obj._untyped_storage), obj.dtype)
        if isinstance(obj, torch.UntypedStorage):
            return _untyped_storage, self._storage(obj)
        if isinstance(obj, CodeType):
            # cloudpickle leaves the file's name out, and a traceback would not show the script's own line
            make, arguments = self.dispatch_table[CodeType](obj)
            return _code, (make, arguments, obj.co_filename)
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            # torch refuses, since pickle alone cannot send the class that it makes for each such module
            return copyreg.__newobj__, (type(obj),), vars(obj)  # type: ignore[attr-defined]
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented and isinstance(obj, FunctionType):
            return reduced  # it can be imported there
        compiled = _reduce_compiled(obj)
        return reduced if compiled is None else compiled

    def _storage(self, storage: torch.UntypedStorage) -> tuple[Any, ...]:
        found = self._storages.get(storage._cdata)
        if found is None:
            found = (len(self._storages), *self._put_storage(storage))
            self._storages[storage._cdata] = found
            self._kept.append(storage)
        return found

    def _put_storage(self, storage: torch.UntypedStorage) -> tuple[int, int, str]:
        device, size = storage.device, storage.nbytes()
        self.on_device |= device.type not in ("cpu", "meta")
        if size == 0 or device.type == "meta" or self._file is None:
            return 0, size, str(device)
        contents = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)  # type: ignore[call-overload]
        return self._put(contents.cpu().numpy()), size, str(device)

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


class _Memory:
    """The memory that a package is loaded from, and the storages over it."""

    def __init__(self, contents: memoryview) -> None:
        self._contents = contents
        self._storages: dict[int, torch.UntypedStorage] = {}

    def storage(self, index: int, place: int, size: int, device: str) -> torch.UntypedStorage:
        if index not in self._storages:
            if size == 0 or device == "meta":
                self._storages[index] = torch.UntypedStorage(size, device=device)
            else:
                found = torch.frombuffer(self._contents, dtype=torch.uint8, count=size, offset=place)
                self._storages[index] = found.to(device).untyped_storage()
        return self._storages[index]


_memory: _Memory | None = None


@contextmanager
def _loading_from(contents: memoryview) -> Iterator[None]:
    global _memory
    _memory = _Memory(contents)
    try:
        yield
    finally:
        _memory = None


def _untyped_storage(*place: Any) -> torch.UntypedStorage:
    assert _memory is not None
    return _memory.storage(*place)


def _typed_storage(*place_and_dtype: Any) -> torch.storage.TypedStorage:
    *place, dtype = place_and_dtype
    return torch.storage.TypedStorage(wrap_storage=_untyped_storage(*place), dtype=dtype, _internal=True)


@contextmanager
def _main_by_value() -> Iterator[None]:
    """Send classes and functions of the main script by value, also in a process spawned by multiprocessing.

    There the script is imported under another name, which the process that is sent to does not know.
    """
    main = sys.modules.get("__mp_main__")
    if main is None or main.__name__ != "__mp_main__":
        yield
        return
    cloudpickle.register_pickle_by_value(main)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(main)


def _code(make: Callable[..., CodeType], arguments: tuple[Any, ...], filename: str) -> CodeType:
    return make(*arguments).replace(co_filename=filename)


def _itself(stand_in: object) -> object:
    return stand_in


def _reduce_compiled(obj: Any) -> tuple[Any, ...] | None:
    """Return how pickle recompiles a compiled object, like `__reduce__`; None for other objects.

    Compiled code belongs to a process. inductor caches compiled code in a folder that all processes share, so only the
    first compilation is slow.
    """
    if isinstance(obj, (OptimizedModule, OptimizeContext, FunctionType)):
        arguments = compile_arguments(obj)
        if arguments is None:
            return None
        if isinstance(obj, OptimizeContext):
            return _context, (arguments,)
        if isinstance(obj, FunctionType):
            return _compile, (obj._torchdynamo_orig_callable, arguments)  # type: ignore[attr-defined]
        hooks = {name: value for name, value in vars(obj).items() if "_hooks" in name and value}
        return _compile, (obj._orig_mod, arguments), hooks, None, None, _set_attributes
    if isinstance(obj, nn.Module) and obj._compiled_call_impl is not None:
        arguments = compile_arguments(obj._compiled_call_impl)
        if arguments is not None:
            make, given, state = cast(tuple[Any, ...], obj.__reduce_ex__(5))[:3]
            return make, given, (state, arguments), None, None, _set_state_and_compile
    return None


def _compile(target: Any, arguments: Mapping[str, Any]) -> Any:
    return torch._dynamo.optimize(**arguments)(target)


def _context(arguments: Mapping[str, Any]) -> Any:
    return torch._dynamo.optimize(**arguments)


def _set_attributes(obj: object, attributes: Mapping[str, Any]) -> None:
    vars(obj).update(attributes)


def _set_state_and_compile(module: nn.Module, state_and_arguments: tuple[Any, Mapping[str, Any]]) -> None:
    state, arguments = state_and_arguments
    module.__setstate__(state)
    module._compiled_call_impl = _compile(module._call_impl, arguments)


def _descend(path: str, found: object, error: Exception, known: dict[int, object]) -> tuple[str, object, Exception]:
    known = {**known, id(found): None}
    for name, child in _children(found):
        if id(child) in known:
            continue
        inner = _error(child, known)
        if inner is not None:
            return _descend(path + name, child, inner, known)
    return path, found, error


def _error(found: object, replace: Mapping[int, object]) -> Exception | None:
    try:
        try_to_pack(found, replace)
    except Exception as error:
        return error
    return None


def _children(found: object) -> Iterator[tuple[str, Any]]:
    if isinstance(found, dict):
        yield from ((f"[{key!r}]", value) for key, value in found.items())
    elif isinstance(found, (list, tuple)):
        yield from ((f"[{index}]", value) for index, value in enumerate(found))
    elif isinstance(found, nn.Module):
        yield from ((f".{name}", value) for name, value in found._modules.items())
        yield from ((f".{name}", value) for name, value in vars(found).items() if name not in {"_modules", "_trainer"})
    else:
        yield from ((f".{name}", value) for name, value in getattr(found, "__dict__", {}).items())
