"""Stages: the user's module as a unit trains it, and as a survivor serves it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lightning_s3t.errors import AdapterError, LayersError
from lightning_s3t.plan.stage_rules import group_of_stage, newest_stages
from lightning_s3t.tuning.adapters import adapter_tensors, check_adapter, find_targets, inject_adapter, own_adapters
from lightning_s3t.tuning.fingerprint import digest_tensors, is_constant
from lightning_s3t.tuning.guard import named_tensors
from lightning_s3t.tuning.layer_detection.ignored import find_losses
from lightning_s3t.tuning.layer_detection.paths import lies_in
from lightning_s3t.tuning.layers import Layers
from lightning_s3t.tuning.randomness import derive_seed
from lightning_s3t.tuning.swap import ModuleSwap

Snapshot = Mapping[str, Tensor]


class StageBuilder:
    """Builds the modules that replace a network's own at a stage.

    At stage k these are the adapters (or copies of the blocks) of the layer groups that stages 1..k train, and a copy
    of the head. Groups below are left out, so the network's own pretrained layers act there.

    Args:
        root: The user's module; it is not changed.
        layers: Its layer groups and head.
        adapter: The adapter, or None for whole layers.
        stages: Number of stages, L; None for as many as there are groups.
        trains: Whether stages are trained. Otherwise everything may be frozen: only the start is built.

    Attributes:
        start: The head that every shard's training starts from; None for the one in the module. A fresh head is often
            drawn at random when the script makes its model, so a store keeps the one of its first fit.

    Raises:
        AdapterError: The adapter does not fit the groups.
        LayersError: The head, or with whole layers a group, has no trainable parameter. (A PEFT model's head may be
            frozen: its adapters are trained alone.)

    Example:
        >>> from lightning_s3t.tuning.layers import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> builder = StageBuilder(net, find_layers(net, slices=2), adapter=None)
        >>> sorted(builder.build(1, {}, seed=0))
        ['2', '4']
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Layers,
        adapter: PeftConfig | None,
        stages: int | None = None,
        trains: bool = True,
    ) -> None:
        self.root = root
        self.layers = layers
        self.adapter = adapter
        self.stages = stages or len(layers.groups)
        if adapter is None:
            self.targets = {group.index: _with_parameters(root, group.modules) for group in layers.groups}
        else:
            self.targets = find_targets(root, layers, adapter)
            check_adapter(root, self.targets, adapter)
        names = [name for targets in self.targets.values() for name in targets]
        if trains:
            self._check_trainable(names)
        self._check_shared()
        self.originals = {name: root.get_submodule(name) for name in [*names, *layers.head]}
        self.start: Snapshot | None = None

    @property
    def network(self) -> nn.Module:
        """The module whose layers they are: the root, or a part of it."""
        return self.root.get_submodule(self.layers.network)

    def group_of(self, stage: int) -> int:
        """Return the layer group that a stage trains.

        Args:
            stage: 1 to L.
        """
        return group_of_stage(stage, self.stages, len(self.layers.groups))

    def newest_stages(self, stage: int) -> tuple[int, ...]:
        """Return the stages whose snapshots make up a model after a stage, for `build`.

        Args:
            stage: 0 to L.
        """
        return newest_stages(stage, self.stages, len(self.layers.groups))

    def build(self, stage: int, trained: Mapping[int, Snapshot], seed: int | None = None) -> dict[str, nn.Module]:
        """Build the replacement modules of a stage.

        Args:
            stage: 1 to L.
            trained: Snapshots by stage: those of `newest_stages(stage - 1)` to train this stage from, those of
                `newest_stages(stage)` to serve it or to change it further.
            seed: The unit's seed, which its fresh adapters are drawn from; None to serve.

        Returns:
            The modules, by the path of the module that each replaces.
        """
        groups = {self.group_of(earlier): snapshot for earlier, snapshot in sorted(trained.items())}
        stand_ins: dict[str, nn.Module] = {}
        for index in range(1, self.group_of(stage) + 1):
            for name in self.targets[index]:
                module = self._stand_in(name, seed or 0)
                if index in groups:
                    load_tensors(module, name, groups[index])
                stand_ins[name] = module
        return stand_ins | self._heads(trained[max(trained)] if trained else self.start)

    def build_start(self) -> dict[str, nn.Module]:
        """Build the head that every shard's training starts from, alone: below it, the pretrained layers act."""
        return self._heads(self.start)

    def untrained(self, stage: int, seed: int) -> dict[str, Tensor]:
        """Return a stage's tensors before any training, by their name in the served module.

        Args:
            stage: 1 to L.
            seed: The unit's seed, which its fresh adapters are drawn from.
        """
        fresh = self.build(stage, {}, seed)
        return live_tensors({name: fresh[name] for name in self.owned(stage)})

    def owned(self, stage: int) -> tuple[str, ...]:
        """Return the names of the replaced modules that belong to a stage: those of its own group and the head.

        Args:
            stage: 1 to L.
        """
        return (*self.targets[self.group_of(stage)], *self.layers.head)

    def base_tensors(self) -> dict[str, Tensor]:
        """Return the head as it stands before any training, by name."""
        return collect_tensors({name: self.originals[name] for name in self.layers.head})

    def describe_model(self) -> dict[str, Any]:
        """Return digests of the module before any training, JSON-ready; they must be the same for all units."""
        frozen = self.frozen_tensors()
        digests = {name: digest_tensors({name: tensor}) for name, tensor in frozen.items()}
        return {
            "pretrained_sha256": hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
            # to name those that differ; constants (the weights of a new BatchNorm) are equal in all new networks
            "pretrained": {
                name: digest[:16] + (" constant" if is_constant(frozen[name]) else "")
                for name, digest in digests.items()
            },
            "head_shapes": {name: list(tensor.shape) for name, tensor in self.base_tensors().items()},
        }

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the module outside the head that may bear on an answer, by name.

        Non-persistent buffers outside the network are left out: losses and metrics create them uninitialised
        (`torch.empty`).
        """
        inside = {id(module) for name in self.layers.head for module in self.originals[name].modules()}
        heads = tuple(
            f"{name}." for name, module in self.root.named_modules(remove_duplicate=False) if id(module) in inside
        )
        scratch = self._scratch_buffers()
        return {
            name: tensor
            for name, tensor in named_tensors(self.root).items()
            if not name.startswith(heads) and name not in scratch
        }

    def _scratch_buffers(self) -> set[str]:
        network = self.network
        losses = find_losses(self.root)
        inside = {id(module) for module in network.modules()}
        return {
            f"{path}.{name}" if path else name
            for path, module in self.root.named_modules(remove_duplicate=False)
            # where the parts of the network are the module's own attributes, so are its losses
            if id(module) not in inside or any(lies_in(path, loss) for loss in losses)
            for name in module._non_persistent_buffers_set
        }

    def count_trainable(self) -> dict[int, int]:
        """Return how many parameters each group's stage trains besides the head, by group index."""
        counts: dict[int, int] = {}
        for index, names in self.targets.items():
            modules = {name: self._stand_in(name, seed=0) for name in names}
            counts[index] = sum(p.numel() for p in trainable_parameters(self, modules).values())
        return counts

    def _heads(self, start: Snapshot | None) -> dict[str, nn.Module]:
        heads = {name: copy.deepcopy(self.originals[name]) for name in self.layers.head}
        if start is not None:
            for name, head in heads.items():
                load_tensors(head, name, start)
        return heads

    def _stand_in(self, name: str, seed: int) -> nn.Module:
        original = self.originals[name]
        if self.adapter is None:
            return copy.deepcopy(original)
        layer: nn.Module = inject_adapter(original, name, self.adapter, derive_seed(seed, "adapter", name))  # type: ignore[assignment]
        return layer

    def _check_shared(self) -> None:
        owners: dict[int, tuple[int, str]] = {}
        for index, targets in self.targets.items():
            for name in targets:
                group, other = owners.setdefault(id(self.root.get_submodule(name)), (index, name))
                if group != index:
                    raise LayersError(
                        f"{other} and {name} are one module, in layer groups {group} and {index}: only one could "
                        "train it. Leave it out with the adapter's target_modules, or name layers that share nothing."
                    )

    def _check_trainable(self, names: Sequence[str]) -> None:
        if not any(parameter.requires_grad for parameter in self.root.parameters()):
            raise LayersError(
                f"No parameter of {type(self.root).__name__} is trainable: all are frozen, or it is fitted without "
                "gradients (a memory of features, statistics). S3T trains by gradients: unfreeze what is to be trained."
            )
        heads = [self.root.get_submodule(name) for name in self.layers.head]
        frozen = not any(p.requires_grad for head in heads for p in head.parameters())
        # PEFT freezes the head of a causal language model: in this case the user asked for it
        if frozen and (self.adapter is not None or not own_adapters(self.root)):
            raise LayersError(
                f"The head ({', '.join(self.layers.head)}) has no trainable parameter. Leave it unfrozen, or name "
                "the right module with head=[...]."
            )
        if self.adapter is None:
            for index, targets in self.targets.items():
                modules = [self.root.get_submodule(name) for name in targets]
                if not any(p.requires_grad for module in modules for p in module.parameters()):
                    raise LayersError(
                        f"Layer group {index} ({', '.join(targets)}) has no trainable parameter, and adapter=None "
                        "trains the layers themselves. Leave them unfrozen, or use an adapter."
                    )
        inside = [n for n in names for head in self.layers.head if n == head or n.startswith(f"{head}.")]
        if inside:
            raise LayersError(f"{', '.join(inside)} lies in the head and in a layer group. Name them apart.")


def trainable_parameters(builder: StageBuilder, stand_ins: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters of replacement modules that training may change, by name.

    For an adapter, PEFT decides which parameters are trained; for a copy, those that were trainable in the user's
    module are.

    Args:
        builder: The builder of the replacement modules.
        stand_ins: Modules by the path of the module that each replaces.
    """
    found: dict[str, nn.Parameter] = {}
    for name, module in stand_ins.items():
        if isinstance(module, BaseTunerLayer):
            for relative, tensor in adapter_tensors(module).items():
                if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                    found[f"{name}.{relative}"] = tensor
        else:
            originals = dict(builder.originals[name].named_parameters())
            for relative, parameter in module.named_parameters():
                if originals[relative].requires_grad:
                    found[f"{name}.{relative}"] = parameter
    return found


def collect_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copy the tensors of replacement modules: adapters without the wrapped layers, copies completely.

    Args:
        modules: Modules by the path of the module that each replaces.

    Returns:
        Contiguous copies on the CPU, by name.
    """
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in live_tensors(modules).items()}


def live_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of replacement modules themselves, by name, as `collect_tensors` copies them.

    Args:
        modules: Modules by the path of the module that each replaces.
    """
    found: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors = adapter_tensors(module) if isinstance(module, BaseTunerLayer) else named_tensors(module)
        found.update({f"{name}.{relative}": tensor for relative, tensor in tensors.items()})
    return found


@torch.no_grad()
def load_tensors(module: nn.Module, name: str, snapshot: Snapshot) -> None:
    """Copy a snapshot's tensors into a replacement module.

    Args:
        module: The replacement module.
        name: The path of the module that it replaces.
        snapshot: Tensors by full name; those of other modules are passed over.

    Raises:
        AdapterError: The snapshot lacks a tensor of the module, or one has another shape.
    """
    for full, tensor in live_tensors({name: module}).items():
        if full not in snapshot:
            raise AdapterError(
                f"The snapshot has no tensor {full}: it was made with other layers or another adapter. Open the "
                "store with the arguments that it was trained with."
            )
        if snapshot[full].shape != tensor.shape:
            raise AdapterError(
                f"The snapshot's {full} has shape {tuple(snapshot[full].shape)}, the model's {tuple(tensor.shape)}. "
                "Open the store with the model and the arguments that it was trained with."
            )
        tensor.copy_(snapshot[full])


class Stage:
    """The user's module with one unit's replacement modules in place.

    Args:
        builder: Builds the replacement modules.
        swap: Puts them in place.
        stage: 1 to L.
        trained: Snapshots by stage, as for `StageBuilder.build`.
        seed: The unit's seed.

    Attributes:
        trainable: The parameters that this stage trains, by name.
        owned: The replacement modules that this stage owns, by name.
    """

    def __init__(
        self, builder: StageBuilder, swap: ModuleSwap, stage: int, trained: Mapping[int, Snapshot], seed: int
    ) -> None:
        stand_ins = builder.build(stage, trained, seed)
        self.index = stage
        self.owned = {name: stand_ins[name] for name in builder.owned(stage)}
        self.trainable = trainable_parameters(builder, self.owned)
        self._reached: set[str] = set()
        swap.install(stand_ins)

    def owned_names(self) -> tuple[str, ...]:
        """Return the names, in the user's module, of every tensor that this stage owns."""
        return tuple(live_tensors(self.owned))

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the tensors that this stage owns, to be kept."""
        return collect_tensors(self.owned)

    def watch(self) -> None:
        """Begin to note which parameters receive a gradient. Gradients themselves don't last: Lightning drops them."""
        for name, parameter in self.trainable.items():
            self._watch(name, parameter)

    def idle_modules(self) -> list[str]:
        """Return the replacement modules without any gradient: the network never called them."""
        idle = []
        for name in self.owned:
            parameters = [full for full in self.trainable if full.startswith(f"{name}.")]
            if parameters and not self._reached.intersection(parameters):
                idle.append(name)
        return idle

    def _watch(self, name: str, parameter: nn.Parameter) -> None:
        def note(_: Tensor) -> None:
            self._reached.add(name)
            handle.remove()  # one gradient is enough to know, and a hook costs time at every step

        handle = parameter.register_post_accumulate_grad_hook(note)


def _with_parameters(root: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if any(True for _ in root.get_submodule(name).parameters()))
