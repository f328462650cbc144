"""Puts one stage after the other in place in a module, and watches that it changes nothing but its own tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft import PeftConfig
from torch import nn

from lightning_s3t.errors import AdapterError
from lightning_s3t.tuning.adapters import adapter_for
from lightning_s3t.tuning.freezing import ModuleFlags, freeze_statistics, set_trainable
from lightning_s3t.tuning.guard import Baseline, LeakageGuard
from lightning_s3t.tuning.layers import find_layers
from lightning_s3t.tuning.stages import Snapshot, Stage, StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap


class StageSwitch:
    """Finds a module's layer groups and head, and switches it from stage to stage.

    Args:
        module: The user's module; it is not changed until a stage is entered.
        slices: Number of stages.
        layers: The blocks, if they are not found automatically: a path, a list of paths, or a list of groups.
        head: The head, if it is not found automatically: a path or a list of paths.
        adapter: The adapter, or None to train the layers themselves. A module's own adapters replace the default, and
            so do whole layers if it does not fit.
        groups: Number of layer groups; None for as many as stages.
        trains: Whether stages are trained, as for `StageBuilder`.

    Attributes:
        builder: Builds the stages' modules.

    Raises:
        LayersError: Groups or head are not found, or do not fit the number of slices.
        AdapterError: The adapter does not fit the groups.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> switch = StageSwitch(net, slices=2, adapter=None)
        >>> stage = switch.enter(1, {}, seed=0)
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias', '4.weight', '4.bias']
        >>> switch.leave()
    """

    def __init__(
        self,
        module: nn.Module,
        slices: int,
        layers: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        head: str | Sequence[str] | None = None,
        adapter: PeftConfig | None = None,
        groups: int | None = None,
        trains: bool = True,
    ) -> None:
        found = find_layers(module, groups or slices, layers, head)
        self.builder = StageBuilder(module, found, adapter_for(module, found, adapter), slices, trains)
        self._swap = ModuleSwap(module, self.builder.originals)
        self._flags = ModuleFlags(module)
        self._baseline: Baseline | None = None

    def take_baseline(self) -> None:
        """Record the module's contents, if several stages follow each other on it: none may change it for the next.

        Call it after the module is prepared, before the first stage.
        """
        self._baseline = Baseline(self.builder.root)

    def enter(self, stage: int, trained: Mapping[int, Snapshot], seed: int) -> Stage:
        """Put a stage's modules in place and make exactly its own tensors trainable.

        Args:
            stage: 1 to L.
            trained: Snapshots by stage, as for `StageBuilder.build`.
            seed: The unit's seed.
        """
        self._flags.restore()
        entered = Stage(self.builder, self._swap, stage, trained, seed)
        self.freeze(entered)
        return entered

    def enter_trained(self, stage: int, trained: Mapping[int, Snapshot]) -> None:
        """Put a unit's serving modules in place; at stage 0, the head that every shard's training starts from.

        Args:
            stage: 0 to L.
            trained: Snapshots by stage, as for `StageBuilder.build`.
        """
        self._flags.restore()
        self._swap.install(self.builder.build(stage, trained) if stage else self.builder.build_start())

    def freeze(self, stage: Stage) -> None:
        """Freeze everything that a stage does not own: parameters and running statistics.

        Args:
            stage: The stage that is in place.
        """
        set_trainable(self.builder.root, stage.trainable.values())
        freeze_statistics(self.builder.root, stage.owned.values())

    def watch(self, stage: Stage) -> StageWatch:
        """Begin to watch a stage, just before it is trained.

        Args:
            stage: The stage that is in place.
        """
        self.freeze(stage)  # code that has run since it was entered may have set flags
        stage.watch()
        root, originals = self.builder.root, self.builder.originals
        return StageWatch(stage, LeakageGuard(root, stage.owned_names(), originals, self._baseline))

    def restore_flags(self) -> None:
        """Restore the trainable and training-mode flags; a stage's modules stay in place."""
        self._flags.restore()

    def leave(self) -> None:
        """Restore the module's own parts and all flags."""
        self._swap.restore()
        self._flags.restore()


class StageWatch:
    """Watches a stage: the tensors that it must leave unchanged, and its used parameters. Made by `StageSwitch.watch`.

    Args:
        stage: The stage.
        guard: Watches everything that the stage does not own.
    """

    def __init__(self, stage: Stage, guard: LeakageGuard) -> None:
        self._stage = stage
        self._guard = guard

    def check(self, what: str) -> None:
        """Raise an error if a tensor that the stage does not own has changed, or one that it owns was never used.

        Args:
            what: The trained unit, for messages: "unit 0/1".

        Raises:
            LeakageError: A tensor changed that it does not own.
            AdapterError: An adapter never acted.
        """
        self.check_others(what)
        idle = self._stage.idle_modules()
        if idle:
            raise AdapterError(
                f"{', '.join(idle)} received no gradient while {what} was trained: the network reads their weights "
                "without calling them, or does not use them. Leave them out with the adapter's target_modules, or "
                "name other layers."
            )

    def check_others(self, what: str) -> None:
        """Raise if anything that the stage does not own has changed.

        Args:
            what: The changed unit, for messages.

        Raises:
            LeakageError: A tensor changed that it does not own.
        """
        self._guard.check(what)
