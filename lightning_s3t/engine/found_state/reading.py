"""The contents of one object, read without running any code of its class."""

from __future__ import annotations

import collections
import datetime
import enum
import functools
import gc
import hashlib
import itertools
import pathlib
import random
import re
import types
import weakref
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch._dynamo.eval_frame import OptimizeContext
from torch.utils.data import DataLoader

from lightning_s3t.engine.found_state.contents import (
    BY_REPR,
    C_DATA,
    GENERATORS,
    RUNNING,
    are_plain,
    bytes_of,
    class_name,
    content_of,
    frame_of,
    is_ordinary,
    is_plain,
    module_of,
)

# by the next part of the path
Parts: TypeAlias = "list[tuple[str, object]]"
# from this number on, plain values do not have their own paths
MANY = 1000
_SKIPPED: tuple[type, ...] = (weakref.ref, *weakref.ProxyTypes, pl.Trainer)
_VALUES: tuple[type, ...] = (
    type,
    types.ModuleType,
    re.Pattern,
    pathlib.PurePath,
    enum.Enum,
    np.generic,
    types.CodeType,
    memoryview,
)
# classes of these packages hold files, locks, sockets, threads, processes and connections
_HANDLES = {
    *("_io", "io", "_thread", "threading", "_socket", "socket", "_ssl", "ssl", "sqlite3", "mmap", "select", "logging"),
    *("selectors", "subprocess", "asyncio", "_asyncio", "concurrent", "multiprocessing", "_multiprocessing", "_queue"),
    *("contextvars", "_contextvars"),
}
# packages whose `__reduce__` copies an object's state without changing it
_REDUCED = {"builtins", "itertools", "datetime", "decimal"}
# without state, the same function in many places does not count as shared
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodWrapperType)
# counters of torch's compilations in the process
_COUNTS = {"_torchdynamo_wrapper_id", "_isolate_recompiles_id"}
_UNREAD: dict[type, set[str]] = {
    OptimizedModule: _COUNTS,
    OptimizeContext: _COUNTS,
    types.FunctionType: _COUNTS,
    DataLoader: {"_iterator"},
    random.Random: {"gauss_next"},
    pl.Callback: {"log", "log_dict"},
    pl.LightningModule: {"_trainer", "_fabric", "_fabric_optimizers", "_current_fx_name"},
    pl.LightningDataModule: {"trainer"},
}
_NAMELESS = {"_parameters", "_buffers", "_modules"}
_CONTAINERS = (dict, list, tuple, collections.deque, set, frozenset)
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)


class Layout(NamedTuple):
    """Where the objects of a class keep their contents.

    Attributes:
        cls: The class.
        name: Its qualified name.
        bases: It and its bases, without `object`.
        container: That of them which is a container.
        attributes: How to read the dictionary of attributes, if there is one.
        slots: How to read each slot, by name.
        unread: Names of attributes that are not read.
        read: How to read the contents of a base class written in C.
        is_value: Whether objects count by their content alone.
        skipped: Whether objects are left out.
    """

    cls: type
    name: str
    bases: tuple[type, ...]
    container: type | None
    attributes: Any
    slots: dict[str, Any]
    unread: set[str]
    read: Callable[[Any], Parts] | None
    is_value: bool
    skipped: bool


class Reader:
    """Reads objects, and remembers the layout of their classes."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}

    def layout(self, cls: type) -> Layout:
        """Return where the objects of a class keep their contents.

        Args:
            cls: The class. It is not asked itself: `cls.__mro__` and the like could be properties of a metaclass.
        """
        if id(cls) not in self._layouts:
            self._layouts[id(cls)] = _layout(cls)
        return self._layouts[id(cls)]

    def read(self, value: Any, grouped: bool = False) -> tuple[bytes, Parts]:
        """Reads one object.

        Args:
            value: The object.
            grouped: Whether its plain attributes need no paths of their own.

        Returns:
            The object's plain values, as bytes, and everything else by the next part of its path.
        """
        layout = self.layout(type(value))
        own, parts = self._elements(value, layout)
        held: dict[Any, Any] = layout.attributes.__get__(value) if layout.attributes else {}
        attributes = _attributes(value, held, layout)
        if layout.read:
            parts += layout.read(value)
        else:  # contents of a class written in C besides its attributes
            known = {id(held), *map(id, dict.values(held)), *(id(part) for _, part in attributes)}
            parts += [(name, part) for name, part in _referents(value) if id(part) not in known]
        parts += attributes
        if grouped or len(parts) >= MANY:
            which = are_plain(part for _, part in parts)
            plain = [part for part, is_one in zip(parts, which, strict=True) if is_one]
            if plain and (grouped or len(plain) >= MANY):
                own.append(plain)
                parts = [part for part, is_one in zip(parts, which, strict=True) if not is_one]
        return bytes_of(own) if own else b"", parts

    def _elements(self, value: Any, layout: Layout) -> tuple[list[Any], Parts]:
        base: Any = layout.container
        if base is None:
            return [], []
        if base is dict:
            return _items(value, layout)
        elements = list(base.__iter__(value))
        own = [collections.deque.maxlen.__get__(value)] if base is collections.deque else []
        if base in (set, frozenset):
            which = are_plain(elements)
            plain = _sorted([element for element, is_one in zip(elements, which, strict=True) if is_one])
            others = [element for element, is_one in zip(elements, which, strict=True) if not is_one]
            others.sort(key=self._sketch)
            return [plain, len(others)], [(f"{{{place}}}", element) for place, element in enumerate(others)]
        if len(elements) >= MANY and is_plain(elements, (tuple, list, dict)):
            return [*own, elements], []
        if is_plain(elements):
            return [*own, elements], []
        which = are_plain(elements)
        held = [(f"[{place}]", element) for place, element in enumerate(elements) if not which[place]]
        return [*own, [element if which[place] else ... for place, element in enumerate(elements)]], held

    def _sketch(self, value: Any, depth: int = 3) -> str:
        """Puts the members of a set in an order that is the same in every process, if it can."""
        layout = self.layout(type(value))
        if is_plain([value]):
            return bytes_of(value).hex()
        if layout.skipped or not depth:
            return layout.name
        own, parts = (b"", []) if layout.is_value else self.read(value)
        inner = [f"{name} {self._sketch(part, depth - 1)}" for name, part in parts[:100]]
        return hashlib.sha256(bytes_of([layout.name, content_of(layout.cls)(value), own, inner])).hexdigest()


def _layout(cls: type) -> Layout:
    bases = tuple(base for base in type.__dict__["__mro__"].__get__(cls) if base is not object)
    spaces = [type.__dict__["__dict__"].__get__(base) for base in bases]
    modules = [module_of(base) for base in bases]
    packages = set(modules)
    dicts = [space["__dict__"] for space in spaces if type(space.get("__dict__")) in _DESCRIPTORS]
    slots = {
        name: member
        for space in reversed(spaces)
        if "__slots__" in space
        for name, member in space.items()
        if type(member) is types.MemberDescriptorType
    }
    read = next((read for base, read in _READERS.items() if issubclass(cls, base)), None)
    if read is None:
        reducing = [
            space["__reduce__"]
            for module, space in zip(modules, spaces, strict=True)
            if module in _REDUCED and "__reduce__" in space
        ]
        read = functools.partial(_reduced, reducing[0]) if reducing else None
    unread: set[str] = set().union(*(names for base, names in _UNREAD.items() if issubclass(cls, base)))
    is_handle = bool({package.split(".")[0] for package in packages} & _HANDLES)
    is_handle &= "multiprocessing.sharedctypes" not in packages
    is_value = is_handle or modules[:1] == ["typing"] or issubclass(cls, _VALUES + BY_REPR)
    attributes = dicts[0] if dicts else None
    name = class_name(cls)
    container = next((base for base in _CONTAINERS if base in bases), None)
    # the compiler's own notes, which are thrown away between units; a compiled module is the script's
    notes = any(package.startswith("torch._dynamo") for package in packages) and nn.Module not in bases
    skipped = notes or issubclass(cls, _SKIPPED)
    return Layout(cls, name, bases, container, attributes, slots, unread, read, is_value, skipped)


def _attributes(value: Any, held: dict[Any, Any], layout: Layout) -> Parts:
    parts: Parts = []
    is_module = nn.Module in layout.bases
    for name, part in dict.items(held):
        if type(name) is not str or name in layout.unread:
            continue
        is_dict = issubclass(type(part), dict)
        if name == "_hparams" and is_dict and not dict.__len__(part):
            continue  # made when `hparams` is first read
        if is_module and is_dict and name in _NAMELESS:
            parts += [(f".{key}", child) for key, child in _ordered(part)]
        elif is_module and is_dict and name.startswith("_") and "_hooks" in name:
            # not by their keys, which count all hooks that the process has ever registered
            hooks = [child for _, child in _ordered(part)]
            parts += [(f".{name.lstrip('_')}[{place}]", hook) for place, hook in enumerate(hooks)]
        else:
            parts.append((f".{name.lstrip('_') if name.startswith('_hparams') else name}", part))
    for name, member in layout.slots.items():
        try:
            parts.append((f".{name}", member.__get__(value)))
        except AttributeError:  # an empty slot
            continue
    return parts


def _items(value: dict[Any, Any], layout: Layout) -> tuple[list[Any], Parts]:
    items = _ordered(value)
    keys = [key for key, _ in items]
    parts: Parts = []
    if collections.defaultdict in layout.bases:
        factory: Any = vars(collections.defaultdict)["default_factory"]
        parts.append((".default_factory", factory.__get__(value)))
    if len(items) >= MANY and is_plain(keys) and is_plain((part for _, part in items), (tuple, list, dict)):
        return [keys, [part for _, part in items]], parts
    names = []
    for place, ((key, part), is_one) in enumerate(zip(items, are_plain(keys), strict=True)):
        if is_one:
            name = repr(key)
            if len(name) > 80:
                name = f"{name[:60]}... {hashlib.sha256(bytes_of(key)).hexdigest()[:8]}"
        else:
            name = f"<{class_name(type(key)).rpartition('.')[2]} {place}>"
            parts.append((f"[key {name}]", key))
        names.append(name)
        parts.append((f"[{name}]", part))
    return [names], parts


def _ordered(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Returns a dictionary's items in its order, whatever its class makes of `items`."""
    if not issubclass(type(mapping), collections.OrderedDict):
        return list(dict.items(mapping))
    # once a key was moved to an end, its order is another than that of the dictionary below it
    values = {id(key): value for key, value in dict.items(mapping)}
    return [(key, values[id(key)]) for key in collections.OrderedDict.__iter__(mapping)]


def _sorted(plain: list[Any]) -> list[Any]:
    kinds = set(map(type, plain))
    return sorted(plain) if kinds in ({int}, {str}, {bytes}) else sorted(map(bytes_of, plain))


def _reduced(reduce: Callable[[object], object], value: object) -> Parts:
    if type(value) is itertools.count:
        return [(" at", repr(value))] if is_plain(gc.get_referents(value)) else _referents(value)
    try:
        found = reduce(value)
    except Exception:  # an iterator of a kind that cannot be copied
        return _referents(value)
    if type(found) is not tuple:
        return []
    # how to make it, the arguments, the state
    flat = [*found[:1], *(found[1] if len(found) > 1 and type(found[1]) is tuple else ()), *found[2:]]
    return [(f" part {place}", part) for place, part in enumerate(flat)]


def _referents(value: object) -> Parts:
    left_out = (type, types.ModuleType, types.FrameType, types.CodeType)
    found = [part for part in gc.get_referents(value) if not issubclass(type(part), left_out)]
    return [(f" part {place}", part) for place, part in enumerate(found)]


def _function(value: types.FunctionType) -> Parts:
    parts: Parts = []
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            parts.append((f" closure {name!r}", cell.cell_contents))
        except ValueError:  # not filled yet
            continue
    return parts + [(f".{name}", held) for name in ("__defaults__", "__kwdefaults__") if (held := getattr(value, name))]


def _running(value: Any) -> Parts:
    frame = frame_of(value)
    return [(f" local {name!r}", local) for name, local in frame.f_locals.items()] if frame else []


def _bound(value: Any) -> Parts:
    owner = value.__self__
    return [] if owner is None or issubclass(type(owner), types.ModuleType) else [(".__self__", owner)]


def _tensor(value: Tensor) -> Parts:
    if not is_ordinary(value):
        return []
    with torch._C.DisableTorchFunctionSubclass():
        if value.layout is torch.sparse_coo:
            return [(" indices", value._indices()), (" values", value._values())]
        return [(".grad", value.grad)] if value.is_leaf and value.grad is not None else []


def _array(value: np.ndarray[Any, Any]) -> Parts:
    plain = np.ndarray.view(value, np.ndarray)
    return [(f"[{place}]", element) for place, element in enumerate(plain.ravel())] if plain.dtype.hasobject else []


def _nothing(value: object) -> Parts:
    return []


_READERS: dict[Any, Callable[[Any], Parts]] = {
    _CONTAINERS: _nothing,  # their elements are read by themselves
    (int, float, complex, str, bytes, bytearray, array, *C_DATA, *GENERATORS): _nothing,
    (np.random.BitGenerator, np.random.SeedSequence, datetime.tzinfo): _nothing,
    functools.partial: lambda value: [
        (f".{name}", getattr(functools.partial, name).__get__(value)) for name in ("func", "args", "keywords")
    ],
    types.FunctionType: _function,
    types.MethodType: lambda value: [(".__self__", value.__self__), (".__func__", value.__func__)],
    FUNCTIONS[1:]: _bound,
    RUNNING: _running,
    Tensor: _tensor,
    np.ndarray: _array,
}
