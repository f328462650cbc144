"""Looking at a network before its frozen layers are left out: what is read of them, and whether that is all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_s3t.errors import CacheError
from lightning_s3t.tuning.cache.network_call import NetworkCall
from lightning_s3t.tuning.cache.network_run import Entry, Run, Trunk, kinds_of
from lightning_s3t.tuning.nested import Path, tensors_in
from lightning_s3t.tuning.randomness import seed_running

Go = Callable[[Run, tuple[Any, ...], dict[str, Any]], Any]
# how far two ways of summing up may differ, in parts of the largest number
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 0.1  # of half precision, and of a GPU, which may multiply 32 bits in 19


@dataclass(frozen=True)
class Leaf:
    """A tensor that the trunk gives to the layers above it.

    Attributes:
        dimension: Where its rows are; None if it is the same for all rows.
        device: Its device.
    """

    dimension: int | None
    device: torch.device

    def join(self, rows: Sequence[Tensor], name: str) -> Tensor:
        """Puts the rows of a batch together.

        Args:
            rows: Each row's tensor.
            name: The network, for messages.

        Raises:
            CacheError: The rows differ, and there is no dimension for them.
        """
        if self.dimension is not None:
            return torch.cat(list(rows), self.dimension).to(self.device, non_blocking=True)
        if any(not torch.equal(row, rows[0]) for row in rows[1:]):
            raise CacheError(
                f"{name} makes something of its rows that has no dimension for them, and it differs from row to row. "
                "Use cache=None."
            )
        return rows[0].clone().to(self.device)


@dataclass(frozen=True)
class CachedPart:
    """What a kind of call needs of the trunk.

    Attributes:
        entry: The module that the network begins at.
        leaves: What that is given, by its path in the arguments; none if nothing of it can be kept.
        hidden: What need not be computed, by path: the kinds of what it returns, call by call.
        kept: By stage, the paths of what is kept for it.
        row_bytes: By stage, the bytes that a row takes.
    """

    entry: str
    leaves: dict[Path, Leaf]
    hidden: dict[str, list[Any]]
    kept: dict[int, tuple[Path, ...]]
    row_bytes: dict[int, int] = field(default_factory=dict)


def look_at(
    call: NetworkCall, trunks: Sequence[Trunk], groups: Mapping[str, int], slices: int, go: Go, name: str
) -> CachedPart:
    """Finds out what a kind of call needs of the trunk, and proves that it needs nothing else.

    The network is run on one row and on two; then with everything that lies before the entry replaced by what is not a
    number, but for what is kept. Whatever is read by another way (skip connections, all hidden states) then shows.

    Args:
        call: A call of this kind.
        trunks: What lies before the stage, and before the stages to come.
        groups: The groups of the network's modules, the head's being 0.
        slices: Number of groups.
        go: Makes a run.
        name: The network, for messages.

    Raises:
        CacheError: Something else is needed; saying what.
    """
    return _Look(call, trunks, groups, slices, go, name).part()


class _Look:
    def __init__(
        self, call: NetworkCall, trunks: Sequence[Trunk], groups: Mapping[str, int], slices: int, go: Go, name: str
    ) -> None:
        self._trunks, self._groups, self._slices, self._go, self._name = trunks, groups, slices, go, name
        self._rows = (0, call.rows - 1)
        self._call = call
        self._exact: frozenset[str] = frozenset()
        self._one = self._run(0, note=True)[0]
        self._other = self._run(self._rows[1], stop=True)[0]
        self._two, self._answer = self._run(*self._rows, note=True)
        kinds = {
            path: [kinds_of(*pair) for pair in zip(answers, self._two.answers.get(path, []), strict=False)]
            for path, answers in self._one.answers.items()
        }
        self._kinds = {path: found for path, found in kinds.items() if all(kind is not None for kind in found)}
        self._exact = frozenset(kinds.keys() - self._kinds.keys())

    def part(self) -> CachedPart:
        stage = self._trunks[0].stage
        if stage not in self._one.entries or self._one.entries[stage].name != self._two.entries[stage].name:
            raise CacheError(
                f"{self._name} does not begin with the same layers at every call, so there is no telling where its "
                "frozen layers end. Use cache=None."
            )
        entry = self._one.entries[stage].name
        hidden = self._hidden(self._trunks[0], ())
        leaves = self._leaves(self._trunks[0], hidden)
        if not leaves:
            return CachedPart(entry, {}, {}, {})
        self._check_alone(leaves)
        difference = self._difference(hidden, leaves)
        live: tuple[str, ...] = ()
        if difference is not None:
            live = tuple(path for path in hidden if self._difference({path: hidden[path]}, leaves) is not None)
            stem = tuple(path for path in live if not self._holds_blocks(path))
            hidden = self._hidden(self._trunks[0], stem)
            leaves = self._leaves(self._trunks[0], hidden)
            difference = self._difference(hidden, leaves) if leaves else None
        if difference is not None:
            raise CacheError(self._message(entry, live, difference))
        kept, sizes = {}, {}
        for trunk in self._trunks:
            paths = self._leaves(trunk, self._hidden(trunk, live))
            tensors = self._one.entries[trunk.stage].tensors
            kept[trunk.stage] = tuple(paths)
            sizes[trunk.stage] = sum(tensors[path].numel() * tensors[path].element_size() for path in paths)
        kept[stage] = tuple(leaves)
        return CachedPart(entry, {path: self._leaf(path) for path in leaves}, hidden, kept, sizes)

    def _run(
        self,
        *rows: int,
        trunk: Trunk | None = None,
        hidden: Mapping[str, list[Any]] | None = None,
        kept: Mapping[Path, Tensor] | None = None,
        stop: bool = False,
        note: bool = False,
    ) -> tuple[Run, Any]:
        exact = self._exact if hidden else frozenset[str]()
        run = Run(
            trunk or self._trunks[0], self._groups, self._slices, len(rows), hidden or {}, kept, stop, note, exact
        )
        seed_running(0)
        try:
            answer = self._go(run, *self._call.take(*rows))
        except CacheError:
            raise
        except Exception as error:
            if hidden is None:
                raise
            raise CacheError(
                f"{self._name} cannot run without its frozen layers: {type(error).__name__}: {error}. Use cache=None."
            ) from error
        return run, answer

    def _hidden(self, trunk: Trunk, live: Sequence[str]) -> dict[str, list[Any]]:
        return {path: kinds for path, kinds in self._kinds.items() if path in trunk.parts and path not in live}

    def _leaves(self, trunk: Trunk, hidden: Mapping[str, list[Any]]) -> list[Path]:
        """Returns which of the entry's arguments are not what they were once the trunk is hidden."""
        if trunk.stage not in self._one.entries:
            return []
        without = self._run(0, trunk=trunk, hidden=hidden, stop=True)[0].entries.get(trunk.stage)
        with_ = self._one.entries[trunk.stage]
        return [] if without is None else _changed(with_, without)

    def _leaf(self, path: Path) -> Leaf:
        stage = self._trunks[0].stage
        one, two = self._one.entries[stage].tensors[path], self._two.entries[stage].tensors[path]
        grown = [d for d, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        if len(grown) > 1 or any(two.shape[d] != 2 * one.shape[d] for d in grown):
            raise CacheError(
                f"What the frozen layers of {self._name} return has the shape {tuple(one.shape)} for one row and "
                f"{tuple(two.shape)} for two. Expected one dimension that counts rows. Use cache=None."
            )
        return Leaf(grown[0] if grown else None, one.device)

    def _difference(self, hidden: Mapping[str, list[Any]], leaves: Sequence[Path]) -> float | None:
        """Returns by how much the answer differs with parts hidden; None if it does not."""
        stage = self._trunks[0].stage
        pair = [self._one.entries[stage].tensors, self._other.entries[stage].tensors]
        kept = {path: self._leaf(path).join([tensors[path] for tensors in pair], self._name) for path in leaves}
        answer = self._run(*self._rows, hidden=hidden, kept=kept)[1]
        return _difference(self._answer, answer, self._name)

    def _check_alone(self, leaves: Sequence[Path]) -> None:
        """Raises unless the trunk makes the same of a row that is alone as of one that is not."""
        stage = self._trunks[0].stage
        pair = [self._one.entries[stage].tensors, self._other.entries[stage].tensors]
        for path in leaves:
            together = self._two.entries[stage].tensors[path]
            alone = self._leaf(path).join([tensors[path] for tensors in pair], self._name)
            if together.is_floating_point() and together.numel():
                difference = _difference(together, alone, self._name)
                if difference is not None:
                    raise CacheError(
                        f"What the frozen layers of {self._name} make of a row depends on the others in its batch (it "
                        f"differs by {difference:.2g}): they use statistics of the batch. Use cache=None."
                    )

    def _holds_blocks(self, path: str) -> bool:
        return any(block == path or block.startswith(f"{path}.") for block in self._groups)

    def _message(self, entry: str, live: Sequence[str], difference: float) -> str:
        read = f" What is read is that of {', '.join(live[:5])}{', ...' if len(live) > 5 else ''}." if live else ""
        return (
            f"{self._name} does not answer the same if it begins at {entry}, with what the frozen layers before it "
            f"give it: its answers differ by {difference:.2g}. Something above reads those layers by another way (skip "
            f"connections, all hidden states).{read} Use cache=None."
        )


def _changed(one: Entry, other: Entry) -> list[Path]:
    return [path for path, tensor in one.tensors.items() if _is_another(tensor, other.tensors.get(path))]


def _is_another(tensor: Tensor, again: Tensor | None) -> bool:
    if again is None or again.shape != tensor.shape or again.dtype != tensor.dtype:
        return True
    # of a mask nobody can tell from a few rows whether it is always the same
    return not tensor.is_floating_point() or not torch.equal(tensor.nan_to_num(), again.nan_to_num(nan=12345.0))


def _difference(one: Any, other: Any, name: str) -> float | None:
    expected, found = dict(tensors_in(one)), dict(tensors_in(other))
    floating = {path: tensor for path, tensor in expected.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        raise CacheError(
            f"{name} returns no numbers (floating-point tensors, in tuples, lists or dicts) to compare. Use cache=None."
        )
    worst = None
    for path, tensor in floating.items():
        again = found.get(path)
        if again is None or again.shape != tensor.shape:
            return float("inf")
        apart = (tensor.double() - again.double()).abs()
        finite = tensor.isfinite()
        scale = float(tensor[finite].abs().max()) if bool(finite.any()) else 0.0
        largest = float(torch.where(finite, apart, 0).nan_to_num(nan=float("inf")).max())
        lost = bool((finite != again.isfinite()).any())
        if lost or largest > _tolerance(tensor) * scale + 1e-9:
            worst = max(worst or 0.0, float("inf") if lost else largest)
    return worst


def _tolerance(tensor: Tensor) -> float:
    if tensor.device.type != "cpu" or torch.is_autocast_enabled(tensor.device.type):
        return _LOW_PRECISION
    return _TOLERANCES.get(tensor.dtype, _LOW_PRECISION)
