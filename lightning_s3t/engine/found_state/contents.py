"""The compared contents of one object: a tensor's values, a generator's state, a function's code."""

from __future__ import annotations

import ctypes
import enum
import marshal
import math
import pathlib
import random
import re
import types
from array import array
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_s3t.tuning.fingerprint import tensor_bytes

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
BY_REPR: tuple[type, ...] = (
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    np.dtype,
    types.GenericAlias,
    types.UnionType,
)
C_DATA = (ctypes._SimpleCData, ctypes.Structure, ctypes.Union, ctypes.Array)
RUNNING = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
ATOMS = frozenset({int, float, complex, str, bytes, bool, type(None), type(...)})
_SAMPLED_FROM, _SAMPLES = 1 << 20, 1 << 16
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_plain(values: Iterable[object], nested: tuple[type, ...] = (tuple,), depth: int = 4) -> bool:
    """Returns whether there are only numbers, text, bytes and None, or containers of these.

    Args:
        values: The values to check; fast for millions.
        nested: The containers to look into.
        depth: Number of levels.

    Example:
        >>> is_plain([1, "a", (None, 2.0)]), is_plain([[1]]), is_plain([[1]], nested=(list,))
        (True, False, True)
    """
    values = list(values)
    kinds = set(map(type, values)) - ATOMS
    if not kinds or not depth or not kinds <= set(nested):
        return not kinds
    mappings = [v for v in values if type(v) is dict]
    inner = [*(v for v in values if type(v) in (tuple, list)), *mappings, *(m.values() for m in mappings)]
    return is_plain(chain.from_iterable(inner), nested, depth - 1)  # type: ignore[arg-type]


def are_plain(values: Iterable[object]) -> list[bool]:
    """Returns of each value whether it is a number, text, bytes, None, or a tuple of these.

    Args:
        values: The values.

    Example:
        >>> are_plain([1, (None, 2.0), [1]])
        [True, True, False]
    """
    return [type(value) in ATOMS or (type(value) is tuple and is_plain([value])) for value in values]


def bytes_of(values: object) -> bytes:
    """Returns plain values as bytes: exact, with their types, and the same in every process.

    Args:
        values: The values.

    Example:
        >>> bytes_of(1) == bytes_of(1.0), bytes_of(float("nan")) == bytes_of(float("nan"))
        (False, True)
    """
    # later versions of the format depend on which strings are the same object
    return marshal.dumps(values, 2)  # type: ignore[arg-type]


def plain_bytes(values: Iterable[object]) -> list[bytes | None]:
    """Return each value's bytes; None for values that `are_plain` rejects.

    Args:
        values: The values.
    """
    values = list(values)
    return [bytes_of(value) if is_one else None for value, is_one in zip(values, are_plain(values), strict=True)]


def content_of(cls: type) -> Callable[[Any], bytes]:
    """Return a reader of the compared contents of a tensor, array, random generator, function or another leaf.

    Args:
        cls: Its class. Containers are not read here: only their parts count.

    Example:
        >>> content_of(torch.dtype)(torch.float16)
        b'torch.float16'
    """
    return next((read for base, read in _CONTENTS.items() if issubclass(cls, base)), lambda value: b"")


def class_name(cls: type) -> str:
    """Returns a class's qualified name.

    Args:
        cls: The class.
    """
    return f"{module_of(cls)}.{type.__dict__['__qualname__'].__get__(cls)}"


def module_of(cls: type) -> str:
    """Returns the name of a class's module.

    Args:
        cls: The class.
    """
    name = type.__dict__["__module__"].__get__(cls)
    return name if type(name) is str else "?"


def is_ordinary(value: Tensor) -> bool:
    """Returns whether a tensor can be read without running code of its class.

    Args:
        value: The tensor.
    """
    # a class with a dispatcher of its own would run it at every operation
    return type(value).__torch_dispatch__ is Tensor.__torch_dispatch__


def frame_of(value: Any) -> Any:
    """Returns where a generator or coroutine stands, or None at its end.

    Args:
        value: The generator or coroutine.
    """
    return next(getattr(value, name) for name in ("gi_frame", "cr_frame", "ag_frame") if hasattr(type(value), name))


def _tensor_content(value: Tensor) -> bytes:
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        header = f"{value.dtype} {'nested' if value.is_nested else tuple(value.shape)} {value.layout}".encode()
        if (
            value.is_nested
            or not is_ordinary(value)
            or value.layout is not torch.strided
            or value.is_meta
            or value.is_quantized
        ):
            return header
        contents = torch._C.TensorBase.detach(value).resolve_conj().resolve_neg()
        if contents.numel() * contents.element_size() > _SAMPLED_FROM:
            contents = torch.view_as_real(contents) if contents.is_complex() else contents
            places = torch.from_numpy(_places(contents.numel())).to(contents.device)
            contents = torch.take(contents.view(_INTEGERS[contents.element_size()]), places)
        return header + bytes(tensor_bytes(contents))


def _array_content(value: np.ndarray[Any, Any]) -> bytes:
    plain = np.ndarray.view(value, np.ndarray)
    header = f"{plain.dtype} {plain.shape}".encode()
    if plain.dtype.hasobject:
        return header
    return header + (plain.flat[_places(plain.size)] if plain.nbytes > _SAMPLED_FROM else plain).tobytes()


def _places(count: int) -> np.ndarray[Any, Any]:
    step = -(-count // _SAMPLES)
    # otherwise some columns of a matrix would never be looked at
    while math.gcd(step, count) > 1:
        step += 1
    # the last complex number is two
    return np.append(np.arange(0, count, step), (count - 2, count - 1))


def _frozen(state: Any) -> Any:
    """Makes a generator's state plain."""
    if isinstance(state, dict):
        return tuple((key, _frozen(state[key])) for key in sorted(state))
    if isinstance(state, (list, tuple)):
        return tuple(_frozen(element) for element in state)
    return state.tobytes() if isinstance(state, (np.ndarray, np.generic)) else state


def _bits_content(bits: Any) -> bytes:
    seeds = getattr(bits, "_seed_seq", None)
    return bytes_of((_frozen(bits.state), getattr(seeds, "n_children_spawned", 0)))


def _function_content(value: types.FunctionType) -> bytes:
    code = value.__code__
    constants = tuple(constant for constant in code.co_consts if is_plain([constant]))
    module = value.__module__ if is_plain([value.__module__]) else None
    return bytes_of((module, value.__qualname__, code.co_code, code.co_names, constants))


def _enum_content(value: enum.Enum) -> bytes:
    held = object.__getattribute__(value, "__dict__")
    return bytes_of([held.get(name) for name in ("_name_", "_value_") if is_plain([held.get(name)])])


_CONTENTS: dict[Any, Callable[[Any], bytes]] = {
    Tensor: _tensor_content,
    np.ndarray: _array_content,
    np.generic: lambda value: f"{value.dtype}".encode() + (b"" if value.dtype.hasobject else value.tobytes()),
    torch.Generator: lambda value: bytes(tensor_bytes(torch.Generator.get_state(value))),
    random.Random: lambda value: bytes_of(random.Random.getstate(value)),
    np.random.Generator: lambda value: _bits_content(np.random.Generator.bit_generator.__get__(value)),
    np.random.RandomState: lambda value: bytes_of(_frozen(np.random.RandomState.get_state(value, legacy=False))),
    np.random.BitGenerator: _bits_content,
    np.random.SeedSequence: lambda value: bytes_of(_frozen(value.state)),
    types.FunctionType: _function_content,
    types.MethodWrapperType: lambda value: bytes_of(value.__name__),
    types.BuiltinFunctionType: lambda value: bytes_of((value.__module__, value.__qualname__)),
    RUNNING: lambda value: bytes_of(getattr(frame_of(value), "f_lasti", None)),
    enum.Enum: _enum_content,
    **{
        base: lambda value, base=base: bytes_of(base.__getnewargs__(value))  # type: ignore[misc]
        for base in (int, float, complex, str, bytes)
    },
    array: lambda value: bytes_of((value.typecode, memoryview(value).tobytes())),
    (bytearray, *C_DATA): lambda value: memoryview(value).tobytes(),
    type: lambda value: class_name(value).encode(),
    types.ModuleType: lambda value: bytes_of(types.ModuleType.__getattribute__(value, "__name__")),
    re.Pattern: lambda value: bytes_of((value.pattern, value.flags)),
    pathlib.PurePath: lambda value: pathlib.PurePath.__str__(value).encode(errors="surrogateescape"),
    BY_REPR: lambda value: repr(value).encode(),
}
