"""Sequential passes: the shards answer one after another; the layers below all adapted ones are computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_s3t.errors import EnsembleError
from lightning_s3t.serving.override_forward import Forward, override_forward
from lightning_s3t.serving.served_shards import ServedShards
from lightning_s3t.tuning.layers import Layers
from lightning_s3t.tuning.nested import has_plain_leaves, leaves_in, replace_tensors, tensors_in, with_leaves
from lightning_s3t.tuning.stages import StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap


class SequentialPasses:
    """Calls each shard in a separate pass, with its replacement modules in place.

    Every pass has its own copy of the arguments, so its in-place changes are not visible to the others.

    Args:
        builder: The builder of the replacement modules.
        swap: Puts them in place; the caller restores the originals.
        shards: The shards.
    """

    def __init__(self, builder: StageBuilder, swap: ModuleSwap, shards: ServedShards) -> None:
        self._builder = builder
        self._swap = swap
        self._shards = shards

    def run(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shards: Sequence[int],
        caches: Mapping[int, Mapping[int, Any]],
        share: bool = False,
        watch: bool = False,
    ) -> list[Any]:
        """Return the shards' answers, in the order of the shards.

        Args:
            forward: The network's own forward.
            args: The arguments of its call.
            kwargs: Likewise.
            shards: The shards.
            caches: Each shard's own cache, by the `id` of the caller's that it stands behind.
            share: Compute the trunk that the shards share once.
            watch: Make sure that the adapters act: that no block computes past them.

        Raises:
            EnsembleError: A block computes past its adapters, or the call has something that cannot be copied.
        """
        depths = self._shards.depths(shards)
        order = sorted(shards, key=depths.__getitem__)
        trunk = (
            SharedTrunk(self._builder.root, self._builder.layers, [depths[shard] for shard in order]) if share else None
        )
        stand_ins = {shard: self._shards.stand_ins(shard) for shard in order}
        given = [leaf for _, leaf in leaves_in((args, kwargs))]
        answers = {}
        for shard in order:
            self._swap.install(stand_ins[shard])
            own = _Copies({cache: own[shard] for cache, own in caches.items()})
            own_args, own_kwargs = with_leaves((args, kwargs), [own.of(leaf) for leaf in given])
            with (
                trunk.next_pass() if trunk is not None else nullcontext(),
                self._watched(stand_ins[shard], depths[shard]) if watch else nullcontext(),
            ):
                answers[shard] = forward(*own_args, **own_kwargs)
            own.check_not_kept(answers[shard])
        return [answers[shard] for shard in shards]

    @contextmanager
    def _watched(self, stand_ins: Mapping[str, nn.Module], depth: int) -> Iterator[None]:
        """Make sure that a block which is called while the block runs calls its adapters."""
        if self._builder.adapter is None:
            yield  # the blocks themselves are the replacements
            return
        groups = self._builder.layers.groups[:depth]
        blocks = [name for group in groups for name in group.modules]
        modules = {name: self._builder.root.get_submodule(name) for name in dict.fromkeys([*blocks, *stand_ins])}
        called: set[str] = set()

        def note(name: str, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            called.add(name)
            return own(*args, **kwargs)

        # no hooks: torch's fused encoder layers are not used where there is one
        with override_forward(modules, note):
            yield
        for block in blocks:
            inside = [name for name in stand_ins if name == block or name.startswith(f"{block}.")]
            if block in called and inside and not called.intersection(inside):
                raise EnsembleError(
                    f"{block} ({type(modules[block]).__name__}) computes its output without calling its adapters "
                    f"({', '.join(inside[:3])}), so it would answer as if nothing had been trained. Expected a block "
                    "that calls its layers: turn off its fused or specialised inference path."
                )


class SharedTrunk:
    """Passes of several shards over one network with one input; each computes only its own part.

    Blocks of a layer group that a shard does not adapt give the same for it as for every other shard that does not
    adapt the group. The first pass, that of the shard which adapts least, records the blocks' outputs; the later passes
    reuse them. The output of a pass is bitwise equal to that of a separate pass, even with skip connections, since
    every skipped block returns its recorded output. If a group's blocks are called after an adapted module, as in a
    network with two branches, every pass computes them itself.

    Args:
        root: The module that the layers were found in.
        layers: Its layer groups and head.
        depths: Number of layer groups that each pass has changed, in ascending order.

    Example:
        >>> import torch
        >>> from lightning_s3t.tuning.layers import find_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> trunk, x = SharedTrunk(net, find_layers(net, slices=2), depths=[1, 1]), torch.ones(1, 4)
        >>> with trunk.next_pass():
        ...     first = net(x)
        >>> _ = net[0].weight.data.zero_()  # not asked again
        >>> with trunk.next_pass():
        ...     bool((net(x) == first).all())
        True
    """

    def __init__(self, root: nn.Module, layers: Layers, depths: Sequence[int]) -> None:
        self._root = root
        self._groups = len(layers.groups)
        self._group_of = layers.group_of()
        self._depths = list(depths)
        self._passes = 0
        self._order: list[int] = []  # the groups of the first pass's calls
        self._kept: dict[str, list[Any]] = {}
        self._asked: dict[str, int] = {}  # how often each module of this pass was called
        self._usable = True

    @contextmanager
    def next_pass(self) -> Iterator[None]:
        """Let the next shard's pass through the network share the trunk; its replacement modules are in place."""
        if len(self._depths) < 2 or self._depths[1] == self._groups:
            yield  # no two of them leave a layer unchanged
            return
        number, self._passes = self._passes, self._passes + 1
        depth = self._depths[number]
        if number == 0:
            with override_forward(self._modules(below=-1), self._note):
                yield
        elif self._can_share(depth):
            self._asked = {}
            with override_forward(self._modules(below=depth), self._replay):
                yield
        else:
            yield

    def _note(self, path: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = self._group_of[path]
        self._order.append(index)
        if index <= self._depths[1]:
            return forward(*args, **kwargs)
        before = _versions((args, kwargs))
        output = forward(*args, **kwargs)
        # side effects of a block cannot be passed on to the next pass
        if has_plain_leaves(output) and _versions((args, kwargs)) == before:
            self._kept.setdefault(path, []).append(_copied(output))
        else:
            self._usable = False
        return output

    def _replay(self, path: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept, number = self._kept.get(path, []), self._asked.get(path, 0)
        self._asked[path] = number + 1
        return _copied(kept[number]) if number < len(kept) else forward(*args, **kwargs)

    def _can_share(self, depth: int) -> bool:
        if not self._usable:
            return False
        below = [place for place, index in enumerate(self._order) if index > depth]
        above = [place for place, index in enumerate(self._order) if index <= depth]
        return not below or not above or below[-1] < above[0]

    def _modules(self, below: int) -> dict[str, nn.Module]:
        """Return the modules of the groups below one, each once."""
        found: dict[int, tuple[str, nn.Module]] = {}
        for path, index in self._group_of.items():
            if index > below:
                module = self._root.get_submodule(path)
                found.setdefault(id(module), (path, module))
        return dict(found.values())


class _Copies:
    """The arguments for one pass: its own caches, and copies of everything that it could change."""

    def __init__(self, caches: Mapping[int, Any]) -> None:
        self._own = dict(caches)  # by the id of the argument, which the caller keeps alive
        self._objects: list[Any] = []

    def of(self, leaf: Any) -> Any:
        """Return this pass's replacement for a leaf of the call; the same leaf always gets the same one."""
        if id(leaf) in self._own:
            return self._own[id(leaf)]
        if leaf is None or isinstance(leaf, (bool, int, float, str, nn.Module, torch.Generator)):
            return leaf
        if isinstance(leaf, Tensor):
            # compiled graphs handle in-place changes themselves
            own: Any = leaf if torch.compiler.is_compiling() else leaf.clone()
        else:
            own = self._copy_object(leaf)
            self._objects += [own] if own is not leaf else []
        self._own[id(leaf)] = own
        return own

    def check_not_kept(self, answer: Any) -> None:
        """Refuse an output that contains a copy: state passed from call to call would belong to only one shard."""
        if not self._objects:
            return
        returned = {id(leaf) for _, leaf in leaves_in(answer)}
        for own in self._objects:
            if id(own) in returned:
                raise EnsembleError(
                    f"The network carries an object of {type(own).__name__} from one call to the next. It is not a "
                    "kind of cache that an ensemble can give to each shard. Call the network without it "
                    "(transformers: use_cache=False)."
                )

    def _copy_object(self, leaf: Any) -> Any:
        try:
            return leaf if torch.compiler.is_compiling() else copy.deepcopy(leaf)
        except Exception as error:
            raise EnsembleError(
                f"The network is called with an object of {type(leaf).__name__} that cannot be copied ({error}), so "
                "the shards would share its changes. Leave it out, or give it a __deepcopy__."
            ) from error


def _copied(output: Any) -> Any:
    # the network may modify a block's output in place
    return replace_tensors(output, lambda _, tensor: tensor.clone())


def _versions(arguments: Any) -> list[int]:
    return [tensor._version for _, tensor in tensors_in(arguments) if not tensor.is_inference()]
