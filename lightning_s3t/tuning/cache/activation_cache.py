"""The activation cache: what comes out of the frozen layers for a row, computed once in a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.errors import CacheError
from lightning_s3t.tuning.cache.activations import Activations
from lightning_s3t.tuning.cache.cache_check import CachedPart, look_at
from lightning_s3t.tuning.cache.network_call import NetworkCall
from lightning_s3t.tuning.cache.network_run import Reached, Run, Trunk
from lightning_s3t.tuning.cache.quietly import quietly
from lightning_s3t.tuning.interception import intercepted
from lightning_s3t.tuning.layers import Layers
from lightning_s3t.tuning.nested import Path, tensors_in
from lightning_s3t.tuning.randomness import seed_running

Forward = Callable[..., Any]


class ActivationCache:
    """Lets a network begin at the layer group that a stage trains.

    What lies before it is pretrained and frozen in every unit, so what it makes of a row is always the same. Rows are
    known by their contents, where the network is called. What is not there yet is computed one row at a time,
    whatever the batch: what is kept must be a function of the row alone, or else the last bits would tell who was in
    the batch with it, and a deletion would not reach that.

    Args:
        root: The user's module.
        layers: Its layer groups and head.
        activations: Where activations are kept.
        rows: How many rows there are, of the training data and the validation data.
        processes: How many processes keep theirs on this machine.

    Attributes:
        asked: How many rows were looked up in training, after each unit's first epoch.
        found: How many of them were there.

    Example:
        >>> from lightning_s3t.tuning.cache.activations import MemoryBuffers
        >>> from lightning_s3t.tuning.layers import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> cache = ActivationCache(net, find_layers(net, slices=2), Activations(MemoryBuffers()), rows=3)
        >>> x = torch.randn(3, 4)
        >>> with cache.acting(stage=1):
        ...     cached = net(x)
        >>> torch.allclose(cached, net(x), atol=1e-6)
        True
    """

    def __init__(
        self, root: nn.Module, layers: Layers, activations: Activations, rows: int, processes: int = 1
    ) -> None:
        self._root = root
        self._layers = layers
        self._activations = activations
        self._rows = rows
        self._processes = processes
        self._name = layers.network or type(root).__name__
        self._groups = layers.group_of()
        self._slices = len(layers.groups)
        self._plans: dict[tuple[int, str], CachedPart] = {}
        self._trained: set[tuple[int, str]] = set()
        self._sizes: dict[int, int] = {}
        self._trunks: list[Trunk] = []
        self._run: Run | None = None
        self._counting = False
        self.asked = 0
        self.found = 0

    @contextmanager
    def acting(self, stage: int) -> Iterator[None]:
        """Lets the network begin at a stage's own group while the block runs.

        Args:
            stage: The stage, whose modules are in place.

        Raises:
            CacheError: The network cannot begin there, or there is no room for the activations.
        """
        self._trunks = [Trunk.of(self._root, self._layers, index) for index in range(stage, self._slices + 1)]
        self._counting = False
        network = self._root.get_submodule(self._layers.network)
        paths = dict.fromkeys((*self._groups, *sorted(set().union(*(trunk.parts for trunk in self._trunks)))))
        modules = {id(module): path for path in reversed(paths) for module in [self._root.get_submodule(path)]}
        parts = {path: self._root.get_submodule(path) for path in modules.values()}
        with intercepted(parts, self._answer_part), intercepted({self._layers.network: network}, self._answer):
            yield

    def begin_epoch(self, number: int) -> None:
        """Notes that an epoch of the unit begins; in the first, rows are rarely there.

        Args:
            number: Its number, from 0.
        """
        self._counting = number > 0

    def renew(self) -> None:
        """Begins anew if a deletion request has removed what was kept."""
        self._activations.renew()

    def close(self) -> None:
        """Removes all that is kept."""
        self._activations.close()

    def _answer_part(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._run is not None:
            return self._run.answer(name, forward, args, kwargs)
        if self._groups.get(name, 0) > 0:
            raise CacheError(
                f"{name} was called outside of {self._name}.forward(): by a step that uses parts of the network by "
                "themselves, or by gradient checkpointing. Its frozen layers would not be what the cache keeps. Call "
                "the network as a whole, without checkpointing, or use cache=None."
            )
        return forward(*args, **kwargs)

    def _answer(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._run is not None:
            raise CacheError(f"{self._name} calls itself, so there is no telling where it begins. Use cache=None.")
        call = NetworkCall.of(args, kwargs, self._name)
        network = self._root.get_submodule(self._layers.network)
        part = self._part(call, network, forward)
        if call.rows == 0 or not part.leaves:
            return self._go(Run(self._trunks[0], self._groups, self._slices, call.rows), forward, args, kwargs)
        kept = self._look_up(call, part, network, forward)
        run = Run(self._trunks[0], self._groups, self._slices, call.rows, part.hidden, kept)
        answer = self._go(run, forward, args, kwargs)
        if not run.entered:
            raise CacheError(f"{self._name} did not call {part.entry} this time. Use cache=None.")
        self._check_first(call, network, answer)
        return answer

    def _go(self, run: Run, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._run = run
        try:
            return forward(*args, **kwargs)
        except Reached:
            return None
        finally:
            self._run = None

    def _part(self, call: NetworkCall, network: nn.Module, forward: Forward) -> CachedPart:
        key = (self._trunks[0].stage, f"{call.signature} {_autocast(call)}")
        if key not in self._plans:
            if call.rows == 0:
                return CachedPart("", {}, {}, {})

            def go(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return self._go(run, forward, args, kwargs)

            with quietly(network):
                part = look_at(call, self._trunks, self._groups, self._slices, go, self._name)
            torch.clear_autocast_cache()  # weights that were cast without gradients must not serve a step
            self._make_room(part)
            self._plans[key] = part
        return self._plans[key]

    def _make_room(self, part: CachedPart) -> None:
        for stage, size in part.row_bytes.items():
            self._sizes[stage] = max(size, self._sizes.get(stage, 0))
        needed = self._rows * sum(self._sizes.values())
        available = self._activations.available()
        if available is not None and needed * self._processes > 0.9 * available:
            boundaries = sum(size > 0 for size in self._sizes.values())
            raise CacheError(
                f"The activations of {self._rows} rows before {boundaries} layer groups would take "
                f"{_gigabytes(needed * self._processes)} ({sum(self._sizes.values()) / 1024:.1f} KiB a row"
                f"{f', in {self._processes} processes' if self._processes > 1 else ''}), and {_gigabytes(available)} "
                "are free. Use cache='disk' if there is room on the store's disk, fewer slices, smaller inputs, or "
                "cache=None."
            )
        self._activations.limit = max(needed, self._activations.limit)

    def _look_up(self, call: NetworkCall, part: CachedPart, network: nn.Module, forward: Forward) -> dict[Path, Tensor]:
        stage, mode = self._trunks[0].stage, _autocast(call).encode()
        digests = [digest + mode for digest in call.digests()]
        rows = {digest: self._find(stage, digest, part) for digest in digests}
        missing = {digest: row for row, digest in enumerate(digests) if rows[digest] is None}
        if self._counting and network.training:
            self.asked += call.rows
            self.found += sum(digest not in missing for digest in digests)
        if missing:
            with quietly(network):
                for digest, row in missing.items():
                    rows[digest] = self._compute(call, row, digest, part, forward)
        stacked = {}
        for path, leaf in part.leaves.items():
            tensors = [found[str(path)] for digest in digests if (found := rows[digest]) is not None]
            stacked[path] = leaf.join(tensors, self._name)
        return stacked

    def _find(self, stage: int, digest: bytes, part: CachedPart) -> dict[str, Tensor] | None:
        found = self._activations.get((stage, digest))
        return found if found is not None and all(str(path) in found for path in part.leaves) else None

    def _compute(
        self, call: NetworkCall, row: int, digest: bytes, part: CachedPart, forward: Forward
    ) -> dict[str, Tensor]:
        seed_running(0)
        run = Run(self._trunks[0], self._groups, self._slices, 1, stop=True)
        self._go(run, forward, *call.take(row))
        if not run.entered:
            raise CacheError(f"{self._name} did not call {part.entry} for a row alone. Use cache=None.")
        found: dict[str, Tensor] = {}
        for stage, paths in part.kept.items():
            if not paths or stage not in run.entries:
                continue
            tensors = run.entries[stage].tensors
            kept = {str(path): tensors[path].cpu().contiguous() for path in paths if path in tensors}
            self._activations.put((stage, digest), kept)
            if stage == self._trunks[0].stage:
                found = kept
        return found

    def _check_first(self, call: NetworkCall, network: nn.Module, answer: Any) -> None:
        """Looks, where a kind of call is made in training mode for the first time, for what nobody was to read."""
        key = (self._trunks[0].stage, call.signature)
        if not network.training or key in self._trained:
            return
        self._trained.add(key)
        wrong = [t for _, t in tensors_in(answer) if t.is_floating_point() and bool(t.isnan().any())]
        if wrong:
            raise CacheError(
                f"In training mode, {self._name} reads something that lies before the layers that are trained, or its "
                "answer is not a number. If it is so without the cache too, mend that; else use cache=None."
            )


def _autocast(call: NetworkCall) -> str:
    kinds = sorted({tensor.device.type for _, tensor in tensors_in((call.args, call.kwargs))})
    return str([(k, torch.get_autocast_dtype(k)) for k in kinds if torch.is_autocast_enabled(k)])


def _gigabytes(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"
