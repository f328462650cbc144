"""The shards that are served: for each, the modules that its survivor puts into the one backbone for a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.plan import UnitId
from lightning_s3t.tuning.head_features import HeadFeatures
from lightning_s3t.tuning.stages import Snapshot, StageBuilder, live_tensors, load_tensors

Load = Callable[[UnitId], Snapshot]

FLOOR = -1  # represents the floor among the numbered shards


class ServedShards(nn.Module):
    """The replacement modules of every shard's survivor.

    They are registered under the shards' numbers, so that they move between devices with the module they are in. A
    shard that falls back to another survivor keeps its modules: new tensors are copied into them, and the modules of
    deactivated layer groups are removed.

    Args:
        builder: The builder of replacement modules.

    Attributes:
        survivors: The unit that each shard serves.

    Example:
        >>> from lightning_s3t.tuning import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> len(ServedShards(StageBuilder(net, find_layers(net, slices=2), adapter=None)).survivors)
        0
    """

    def __init__(self, builder: StageBuilder) -> None:
        super().__init__()
        self.survivors: dict[int, UnitId] = {}
        self._builder = builder
        self._names: dict[int, list[str]] = {}
        self._keys: dict[int, tuple[str, ...]] = {}
        self._depths: dict[int, int] = {}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Add nothing: the served units are in the store, and a checkpoint would outlive a request.

        Args:
            args: As for any module.
            kwargs: Likewise.
        """
        found: dict[str, Any] = kwargs.get("destination") or (args[0] if args else {})
        return found

    def keys(self, shards: Iterable[int]) -> dict[int, tuple[str, ...]]:
        """Return the digests of the snapshots that shards serve, by stage.

        Args:
            shards: The shards.
        """
        return {shard: self._keys[shard] for shard in shards}

    def depths(self, shards: Iterable[int]) -> dict[int, int]:
        """Return how many layer groups shards serve with, from the top one down.

        Args:
            shards: The shards.
        """
        return {shard: self._depths[shard] for shard in shards}

    def stand_ins(self, shard: int) -> dict[str, nn.Module]:
        """Return a shard's modules by the path of the module that each replaces.

        Args:
            shard: The shard.
        """
        return dict(zip(self._names[shard], self.get_submodule(str(shard)).children(), strict=True))

    def linear_of(self, shard: int, path: str) -> nn.Module:
        """Return a linear layer of a shard's head.

        Args:
            shard: The shard.
            path: Its path in the network.
        """
        for name, module in self.stand_ins(shard).items():
            if path == name or path.startswith(f"{name}."):
                return module.get_submodule(path.removeprefix(name).removeprefix("."))
        raise KeyError(path)

    def serve_floor(self, path: str, layer: nn.Module) -> None:
        """Serve the pretrained network with a closed-form head, as a shard that adapts no layer group.

        Args:
            path: The path of the linear layer that the head replaces.
            layer: The head; it goes where that layer is.
        """
        heads = self._builder.build_start()
        for name, head in list(heads.items()):
            if path == name or path.startswith(f"{name}."):
                layer.to(next(head.parameters()).device)
                if path == name:
                    heads[name] = layer
                else:
                    head.set_submodule(path.removeprefix(f"{name}."), layer)
        self.add_module(str(FLOOR), nn.ModuleList(heads.values()).requires_grad_(False).eval())
        self._names[FLOOR] = list(heads)
        self._keys[FLOOR], self._depths[FLOOR] = (), 0

    def features_of(self, part: FloorPart) -> HeadFeatures:
        """Return what computes the features of the floor's head in a pass.

        Args:
            part: The floor's settings.
        """
        return HeadFeatures(self._builder.root, self._builder.layers.network, part)

    def drop(self, shard: int) -> None:
        """Remove a shard without a survivor. Its tensors are overwritten in memory.

        Args:
            shard: The shard.
        """
        modules = self.stand_ins(shard)
        self._take_out(shard)
        _overwrite(live_tensors(modules))

    def load_survivor(self, unit: UnitId, key: tuple[str, ...], load: Load) -> None:
        """Make a shard serve a unit.

        Everything is read before anything is changed: a revoked or damaged unit leaves the shard unchanged.

        Args:
            unit: The unit.
            key: The digests of its lineage's snapshots.
            load: Reads a unit's snapshot.
        """
        if self._keys.get(unit.shard) == key:
            return
        # tensors loaded in inference mode must be writable outside it later
        with torch.inference_mode(False), torch.no_grad():
            self._replace(unit, key, load)

    def _replace(self, unit: UnitId, key: tuple[str, ...], load: Load) -> None:
        shard, lineage = unit.shard, unit.lineage
        before = self._keys.get(shard, ())
        modules = self.stand_ins(shard) if before else {}
        needed = self._builder.newest_stages(unit.stage)
        if len(before) >= unit.stage:
            loaded = {stage: before[stage - 1] for stage in self._builder.newest_stages(len(before))}
            changed = [stage for stage in needed if loaded.get(stage) != key[stage - 1]]
            snapshots = {stage: load(lineage[stage - 1]) for stage in {*changed, unit.stage}}
            self._take_out(shard)  # were the copying to fail half-way, the shard must not answer
            kept = self._change(modules, unit.stage, changed, snapshots)
            _overwrite(live_tensors({name: module for name, module in modules.items() if name not in kept}))
            modules = kept
        else:
            modules = self._builder.build(unit.stage, {stage: load(lineage[stage - 1]) for stage in needed})
            nn.ModuleList(modules.values()).requires_grad_(False).eval()
            if before:
                self.drop(shard)
        self.add_module(str(shard), nn.ModuleList(modules.values()))
        self._names[shard] = list(modules)
        self._keys[shard], self._depths[shard] = key, self._builder.group_of(unit.stage)
        self.survivors[shard] = unit
        self.survivors = dict(sorted(self.survivors.items()))

    def _take_out(self, shard: int) -> None:
        delattr(self, str(shard))
        del self._names[shard], self._keys[shard], self._depths[shard]
        self.survivors.pop(shard, None)

    def _change(
        self, modules: dict[str, nn.Module], stage: int, changed: Sequence[int], snapshots: dict[int, Snapshot]
    ) -> dict[str, nn.Module]:
        for earlier in changed:
            for name in self._builder.targets[self._builder.group_of(earlier)]:
                load_tensors(modules[name], name, snapshots[earlier])
        for name in self._builder.layers.head:
            load_tensors(modules[name], name, snapshots[stage])
        depth = self._builder.group_of(stage)
        kept = {name for index in range(1, depth + 1) for name in self._builder.targets[index]}
        return {name: module for name, module in modules.items() if name in kept or name in self._builder.layers.head}


class SnapshotPreloader:
    """Reads snapshots, and optionally keeps all that may serve later in the host's memory.

    Args:
        load: Reads a unit's snapshot.
        keep: Whether to keep them, so that a request does not cause reads.

    Example:
        >>> snapshots, unit = SnapshotPreloader(lambda unit: {"w": torch.ones(1)}, keep=True), UnitId(0, (1,))
        >>> snapshots.renew({unit: "a digest"})
        >>> snapshots.load(unit) is snapshots.load(unit)
        True
    """

    def __init__(self, load: Load, keep: bool) -> None:
        self._load = load
        self._keep = keep
        self._kept: dict[UnitId, tuple[str, Snapshot]] = {}

    def renew(self, digests: Mapping[UnitId, str]) -> None:
        """Overwrite and release snapshots that may no longer serve, and read new ones.

        Args:
            digests: The digests of the snapshots of all units that may serve.
        """
        for unit in [unit for unit, (digest, _) in self._kept.items() if digests.get(unit) != digest]:
            _overwrite(self._kept.pop(unit)[1])
        if self._keep:
            for unit in digests.keys() - self._kept.keys():
                self._kept[unit] = (digests[unit], self._load(unit))

    def load(self, unit: UnitId) -> Snapshot:
        """Return a unit's snapshot, from memory if possible.

        Args:
            unit: The unit, which may serve.
        """
        return self._kept[unit][1] if unit in self._kept else self._load(unit)


def _overwrite(tensors: Snapshot) -> None:
    """Overwrite tensors that a request may have revoked: freed memory keeps its contents until it is used again."""
    # tensors created in inference mode can only be changed there
    for tensor in tensors.values():
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor.zero_()
