"""One run through a network whose frozen layers answer through it, or are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.errors import CacheError
from lightning_s3t.tuning.finders.modules import is_callable
from lightning_s3t.tuning.finders.paths import join, lies_in
from lightning_s3t.tuning.layers import Layers
from lightning_s3t.tuning.nested import Path, is_plain, replace_tensors, tensors_in


class Reached(BaseException):
    """Ends a run where it need not go on; no error, so that no network catches it."""


@dataclass(frozen=True)
class Trunk:
    """What may lie before a stage's own layer group.

    Attributes:
        stage: The stage.
        tops: The groups of the modules that a stage trains, or has trained, by path; the head's is 0.
        parts: The paths of the largest modules that have none of those within them.
    """

    stage: int
    tops: Mapping[str, int]
    parts: frozenset[str]

    @classmethod
    def of(cls, root: nn.Module, layers: Layers, stage: int) -> Trunk:
        """Finds it.

        Args:
            root: The module.
            layers: Its layer groups and head.
            stage: The stage.
        """
        tops = {path: group.index for group in layers.groups[:stage] for path in group.modules}
        tops |= dict.fromkeys(layers.head, 0)
        network = root.get_submodule(layers.network)
        return cls(stage, tops, frozenset(_parts(network, layers.network, tops)))


@dataclass(frozen=True)
class Kind:
    """What a tensor is like, whatever its values.

    Attributes:
        shape: Its sizes for one row.
        by_row: Which of them grow with the number of rows.
        dtype: Its dtype.
        device: Its device.
    """

    shape: tuple[int, ...]
    by_row: tuple[bool, ...]
    dtype: torch.dtype
    device: torch.device

    def filled(self, rows: int) -> Tensor:
        """Returns a tensor like it that nobody may read: not numbers, where the dtype has such.

        Args:
            rows: The number of rows.
        """
        shape = [size * rows if grows else size for size, grows in zip(self.shape, self.by_row, strict=True)]
        value = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
        return torch.full(shape, value, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Entry:
    """The first call of a layer group, or of one above it.

    Attributes:
        name: The module.
        tensors: The tensors among its arguments, by path; copies, since a block may write into what it is given.
    """

    name: str
    tensors: dict[Path, Tensor]

    @classmethod
    def of(cls, name: str, arguments: Any) -> Entry:
        """Notes a call.

        Args:
            name: The module.
            arguments: Its arguments.
        """
        return cls(name, {path: tensor.detach().clone() for path, tensor in tensors_in(arguments)})


@dataclass
class Run:
    """One run through a network whose modules answer through it.

    Attributes:
        trunk: What lies before the stage.
        groups: The groups of all modules of the network's groups and head, by path.
        slices: Number of groups.
        rows: The number of rows.
        hidden: What modules of the trunk need not compute, by path: the kinds of what they return, call by call.
        kept: What the entry is to be given in the place of what the trunk gives it.
        stop: Whether the run ends at the entry.
        note: Whether what modules return before the entry is noted.
        exact: Modules before the entry that return something else than floating-point numbers: they must not be given
            what is not a number.
        entries: The entries of all boundaries that were passed, by stage.
        answers: What was returned before the entry, by path, call by call.
    """

    trunk: Trunk
    groups: Mapping[str, int]
    slices: int
    rows: int
    hidden: Mapping[str, list[Any]] = field(default_factory=dict)
    kept: Mapping[Path, Tensor] | None = None
    stop: bool = False
    note: bool = False
    exact: frozenset[str] = frozenset()
    entries: dict[int, Entry] = field(default_factory=dict)
    answers: dict[str, list[Any]] = field(default_factory=dict)
    entered: bool = False
    calls: dict[str, int] = field(default_factory=dict)

    def answer(self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answers a module's call.

        Args:
            name: Its path.
            forward: Its own forward.
            args: The call's arguments.
            kwargs: Those by name.
        """
        if self.entered:
            return forward(*args, **kwargs)
        if self.stop or self.note:
            self._note_entry(name, (args, kwargs))
        if name in self.trunk.tops:
            self.entered = True
            if self.stop:
                raise Reached
            if self.kept is not None:
                args, kwargs = _replaced((args, kwargs), self.kept, name)
            return forward(*args, **kwargs)
        number = self.calls.get(name, 0)
        self.calls[name] = number + 1
        if name in self.hidden and number < len(self.hidden[name]):
            return _filled(self.hidden[name][number], self.rows)
        if name in self.exact and any(_is_lost(tensor) for _, tensor in tensors_in((args, kwargs))):
            raise CacheError(
                f"{name} makes whole numbers or a mask of what the frozen layers compute, which the layers above read. "
                "Use cache=None."
            )
        returned = forward(*args, **kwargs)
        if self.note:
            self.answers.setdefault(name, []).append(returned)
        return returned

    def _note_entry(self, name: str, arguments: Any) -> None:
        if name not in self.groups:
            return
        stages = range(max(self.groups[name], self.trunk.stage), self.slices + 1)
        passed = [stage for stage in stages if stage not in self.entries]
        if passed:
            self.entries.update(dict.fromkeys(passed, Entry.of(name, arguments)))


def kinds_of(one: Any, two: Any) -> Any:
    """Returns what a module returns, with `Kind` in the place of tensors; None if it cannot be told.

    Args:
        one: What it has returned for one row.
        two: For two rows.
    """
    first, second = dict(tensors_in(one)), dict(tensors_in(two))
    if first.keys() != second.keys() or not is_plain(one):
        return None
    kinds: dict[Path, Kind] = {}
    for path, tensor in first.items():
        other = second[path]
        # a mask has no value that shows wherever it is read: it is computed as ever
        if tensor.layout is not torch.strided or tensor.dim() != other.dim() or not tensor.is_floating_point():
            return None
        by_row = tuple(b == 2 * a and a > 0 for a, b in zip(tensor.shape, other.shape, strict=True))
        kept = all(grows or a == b for grows, a, b in zip(by_row, tensor.shape, other.shape, strict=True))
        if not kept:
            return None
        kinds[path] = Kind(tuple(tensor.shape), by_row, tensor.dtype, tensor.device)
    return replace_tensors(one, lambda path, _: kinds[path])


def _filled(kinds: Any, rows: int) -> Any:
    if isinstance(kinds, Kind):
        return kinds.filled(rows)
    if isinstance(kinds, Mapping):
        parts = {name: _filled(part, rows) for name, part in kinds.items()}
        return parts if type(kinds) is dict else type(kinds)(**parts)
    if isinstance(kinds, (tuple, list)):
        items = [_filled(part, rows) for part in kinds]
        return type(kinds)(*items) if hasattr(kinds, "_fields") else type(kinds)(items)
    return kinds


def _is_lost(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _replaced(arguments: Any, kept: Mapping[Path, Tensor], name: str) -> Any:
    lacking = kept.keys() - {path for path, _ in tensors_in(arguments)}
    if lacking:
        raise CacheError(
            f"{name} is called with other arguments than when the cache looked at the network first. Use cache=None."
        )
    return replace_tensors(arguments, lambda path, tensor: kept.get(path, tensor))


def _parts(module: nn.Module, path: str, tops: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name, child in module.named_children():
        inner = join(path, name)
        if inner in tops:
            continue
        if is_callable(child) and not any(lies_in(top, inner) for top in tops):
            found.append(inner)
        else:
            found += _parts(child, inner, tops)
    return found
