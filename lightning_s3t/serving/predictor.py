"""EnsemblePredictor: a module that answers as the ensemble of each shard's best survivor. Torch only, no Lightning."""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from typing_extensions import override

from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.errors import (
    ConfigurationError,
    DamagedError,
    EnsembleError,
    NoSurvivorError,
    RevokedError,
    StoreMismatchError,
    UnsupportedError,
)
from lightning_s3t.plan import UnitId, survivors
from lightning_s3t.serving.aggregation import AGGREGATES, Aggregate, aggregate_outputs
from lightning_s3t.serving.cache_checks import CheckedGeneration, CheckedReading
from lightning_s3t.serving.caches import Keys, caches_in, caches_of_shards, filling, hand_over
from lightning_s3t.serving.closed_form_heads import ClosedFormHeads
from lightning_s3t.serving.exporting import ExportedSurvivor, ExportForm, export_survivor, place_of
from lightning_s3t.serving.notifier import Answer, Notifier
from lightning_s3t.serving.passes import PASSES, Passes, ShardPasses
from lightning_s3t.serving.request_methods import RequestMethods
from lightning_s3t.serving.served_shards import FLOOR, ServedShards, SnapshotPreloader
from lightning_s3t.store import RequestRecord, Store
from lightning_s3t.tuning.adapter_effect import check_effect, measure_effect
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.layer_detection.transformers_models import is_transformers_model
from lightning_s3t.tuning.layers import Layers, check_initialised
from lightning_s3t.tuning.module_copy import copy_module
from lightning_s3t.tuning.stages import StageBuilder

Self = TypeVar("Self", bound="EnsemblePredictor")


class EnsemblePredictor(RequestMethods, nn.Module):
    """A module whose network answers as an ensemble.

    When the module calls its network, each shard's best survivor answers and the outputs are combined. There is one
    backbone; the shards' adapters and heads take turns on it, and layers that none of them adapts are computed once. A
    shard without a survivor is left out. Several threads may call it; they are served one after another.

    A request from another process is noticed before the next answer, and an answer that is overtaken by one is computed
    again. Attributes that the predictor does not have are the module's.

    Args:
        module: The module, with its pretrained weights. It is changed: `from_store` works on a copy.
        store: The opened store; `close` closes it.
        aggregate: See `from_store`.
        passes: See `from_store`.
        preload: See `from_store`.

    Raises:
        StoreMismatchError: The module is not the one that the store was trained with.

    Example:
        >>> EnsemblePredictor.from_store("runs/none", nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.StoreError: ...
    """

    def __init__(
        self,
        module: nn.Module,
        store: Store,
        *,
        aggregate: Aggregate = "mean_logits",
        passes: Passes = "auto",
        preload: bool = False,
    ) -> None:
        super().__init__()
        if passes not in PASSES:
            raise ConfigurationError(f"Expected argument `passes` to be one of {PASSES} but got {passes!r}.")
        self.aggregate = aggregate
        self.store = store
        self.module = _prepared(module, store)
        self._builder = _builder_of(self.module, store)
        self._check_model()
        self._builder.start = store.load_base()
        self._shards = ServedShards(self._builder)
        self._passes = ShardPasses(self._builder, self._shards, passes)
        self._digests: dict[UnitId, str] = {}  # of the snapshots of all units that may serve
        self._snapshots = SnapshotPreloader(lambda unit: store.load(unit, self._digests[unit]), preload)
        self._keys: dict[int, tuple[str, ...]] = {}  # the key of each shard's snapshots
        self._best = FLOOR  # the shard that answers alone
        self._heads = ClosedFormHeads(self._shards, store.load_serving_head)
        self._floor_votes = 0  # of the floor, for each vote of the shards when they are whole
        self._as_of = -1
        self._look: Callable[[], int] = lambda: store.request_number  # a replica may have another
        self._closed = False
        self._lock = _AnswerLock()
        self._reading = CheckedReading(self._passes.is_half)
        self._generation = self._intercept()
        self.requires_grad_(False)
        super().train(False)
        self.refresh()
        self._notifier = Notifier(store)
        self._notifier.join([self])
        self._tie_in()

    @classmethod
    def from_store(
        cls: type[Self],
        store: str | Path,
        module: nn.Module,
        *,
        aggregate: Aggregate = "mean_logits",
        passes: Passes = "auto",
        preload: bool = False,
    ) -> Self:
        """Open a store for serving.

        Args:
            store: The store's folder.
            module: The module, with the same pretrained weights as in `fit`. It is copied. A head that was drawn at
                random may differ: each unit has its own.
            aggregate: How the shards' outputs are combined: "mean_logits", "mean_probabilities" or "vote"; or "single",
                with which only the best survivor of all shards answers, for the cost of one model.
            passes: Whether the shards are asked in "sequential" passes, or "batched", in one pass of all their rows;
                "auto" is batched on a GPU.
            preload: Keep all units that may become survivors in the host's memory, so that a request does not cause
                reads from disk.

        Raises:
            StoreError: The store is missing or damaged.
            StoreMismatchError: The module is not the one that the store was trained with.
        """
        if isinstance(module, EnsemblePredictor):
            raise ConfigurationError(
                f"The module is already an {type(module).__name__}. Expected the module that was trained."
            )
        opened = Store.open(store)
        try:
            return cls(cls._copy(module), opened, aggregate=aggregate, passes=passes, preload=preload)
        except BaseException:
            opened.close()
            raise

    @property
    def aggregate(self) -> Aggregate:
        """How the shards' outputs are combined; it may be changed between calls."""
        return self._aggregate

    @aggregate.setter
    def aggregate(self, how: Aggregate) -> None:
        if how not in AGGREGATES:
            raise ConfigurationError(f"Expected argument `aggregate` to be one of {AGGREGATES} but got {how!r}.")
        self._aggregate = how

    @property
    def survivors(self) -> dict[int, UnitId]:
        """The unit that each shard serves; shards without one are absent."""
        return self._shards.survivors

    @property
    def as_of(self) -> int:
        """The number of the newest request when the serving units were loaded."""
        return self._as_of

    def look_with(self, look: Callable[[], int]) -> None:
        """Replace the store's look for the newest request, for example with that of a replica.

        Args:
            look: Returns its number. If it raises an error, the predictor raises it and does not answer.
        """
        self._look = look

    def keys_in_use(self) -> Mapping[int, tuple[str, ...]]:
        """Look for requests, apply them, and return the digests of the current snapshots, by shard.

        Raises:
            NoSurvivorError: Nothing is left that may answer.
            StoreError: The store cannot be looked at.
        """
        return self.look()[1]

    def look(self) -> tuple[int, Mapping[int, tuple[str, ...]]]:
        """Do the same as `keys_in_use`, and return the number of the newest request with them.

        Raises:
            NoSurvivorError: Nothing is left that may answer.
            StoreError: The store cannot be looked at.
        """
        with self._lock.held:
            keys = dict(self._keys_in_use())
            return self._as_of, keys

    @property
    def network_path(self) -> str:
        """The path of the module's network, whose calls the ensemble answers; "" for the module itself."""
        return self._builder.layers.network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's forward, with the ensemble in place of its network.

        Args:
            args: For the module's `forward`.
            kwargs: Likewise.
        """
        return self.module(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the ensemble, token by token: each shard reads the text so far with its own cache.

        If a deletion request arrives during generation, the text is started again with the survivors.

        Args:
            args: Arguments of the module's `generate`, if it has one, otherwise of the network's (transformers').
            kwargs: Likewise.

        Raises:
            EnsembleError: Neither has one.
        """
        network = self._builder.network
        generate = getattr(type(self.module), "generate", None) and self.module.generate  # type: ignore[operator]
        generate = generate or getattr(network, "generate", None)
        if not callable(generate):
            raise EnsembleError(
                f"Neither {type(self.module).__name__} nor its network {type(network).__name__} can generate. "
                "Expected a transformers language model, or a module with its own generate()."
            )
        while True:
            try:
                return generate(*args, **kwargs)
            except RevokedError:
                if caches_in((args, kwargs)):  # the caller's cache is no longer valid
                    raise

    def on_forget(self, receipt: RequestRecord) -> None:
        """Called once for each request, whoever made it: loads the survivors, and notifies the module.

        Args:
            receipt: The receipt of the request.
        """
        if not self._closed:
            self.refresh()
        hook = getattr(self.module, f"on_{receipt.kind}", None)
        if callable(hook):
            hook(receipt)

    on_rectify = on_restrict = on_release = on_forget

    def refresh(self) -> None:
        """Load the store's current units: survivors after a deletion, new units after a fit."""
        with self._lock.held:
            self._check_open()
            self._as_of = -1  # if loading fails half-way, the next answer must start with loading again
            while True:
                as_of = self.store.request_number
                try:
                    self._load_survivors()
                except RevokedError:
                    continue  # revoked by another process between the look and the load
                except DamagedError as error:
                    warnings.warn(f"{error} Its shard falls back to its remaining intact units.", stacklevel=2)
                    self.store.take_out_damaged()
                    continue
                if as_of == self.store.request_number:
                    self._as_of = as_of
                    return

    def export(
        self, path: str | Path, *, form: ExportForm = "weights", each_shard: bool = False
    ) -> list[ExportedSurvivor]:
        """Write the best survivor of all shards, or each shard's, to files that can be taken away.

        The files are registered in the store: a request that reaches a survivor erases its exported files, and the
        receipt names the exported copy. Remove any other copies of these files yourself. One survivor is not the
        ensemble: on its own it is less accurate.

        Args:
            path: The .safetensors file, for the weights of one survivor; otherwise a folder.
            form: "weights" for a state dict in the module's own names, with the adapters merged into the layers:
                `module.load_state_dict(safetensors.torch.load_file(path))`. Bitwise equal to the serving model if whole
                layers were trained; equal up to rounding if adapters are merged. "adapter" for a PEFT adapter of the
                module's network: `PeftModel.from_pretrained(network, path)`, bitwise equal to the serving model.
            each_shard: Export each shard's survivor, in files or folders `shard-0`, `shard-1`, ... below `path`.

        Returns:
            The exported survivors. A JSON file next to each records its origin.

        Raises:
            ConfigurationError: The path is not one of a new file, or the form is not one that the store's adapter has.
            UnsupportedError: The survivor has two values for parameters that the module ties together.
            NoSurvivorError: No shard has a unit left.
            RevokedError: A request reached a survivor during the export; its files were removed.
        """
        with self._lock.held:
            self._keys_in_use()  # loads changes
            if not self._has_units:
                raise UnsupportedError(
                    f"The method of {self.store.path} trains no units to export: a closed-form head answers, which "
                    "scales each row's features first, so no linear layer has its weights. Serve it from the store."
                )
            if not self.survivors:
                raise NoSurvivorError(
                    f"No shard of {self.store.path} has a unit left to export: only the floor answers. Call "
                    "trainer.fit with the S3T callback and the same store: it trains them again without the "
                    "forgotten data."
                )
            shards = sorted(self.survivors) if each_shard else [self._best]
            return [
                export_survivor(
                    self.store,
                    self._builder,
                    self.survivors[shard],
                    self._shards.keys([shard])[shard],
                    self._shards.stand_ins(shard),
                    place_of(Path(path), form, shard if each_shard else None),
                )
                for shard in shards
            ]

    def close(self) -> None:
        """Close the store. The predictor does not answer afterwards, since it could no longer see requests."""
        with self._lock.held:
            self._closed = True
            self.store.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def train(self: Self, mode: bool = True) -> Self:
        """Refuse training mode: a served model draws no dropout and collects no statistics.

        Args:
            mode: False, which changes nothing.

        Raises:
            UnsupportedError: `mode` is set.
        """
        if mode:
            raise UnsupportedError(
                f"An {type(self).__name__} stays in eval mode: it serves trained units. Train your own module, with "
                "the S3T callback and the same store."
            )
        return super().train(False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise an error: a checkpoint may hold units that were revoked since.

        Args:
            args: Without effect.
            kwargs: Without effect.

        Raises:
            UnsupportedError: Always.
        """
        name = type(self).__name__
        raise UnsupportedError(
            f"An {name} is loaded from its store, which records what was revoked: {name}.from_store(store, module). "
            "To use pretrained weights, load the checkpoint into your own module first."
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Raise an error: it would hold the pretrained network, and none of the serving units.

        Args:
            args: As for any module.
            kwargs: Likewise.

        Raises:
            UnsupportedError: Unless the tensors themselves are requested (`keep_vars`), as in torch.export.
        """
        if kwargs.get("keep_vars"):
            return super().state_dict(*args, **kwargs)
        raise UnsupportedError(self._is_not_saved("has no state dict or checkpoint of its own"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UnsupportedError(self._is_not_saved("cannot be copied or pickled"))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "module" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.module, name)

    @classmethod
    def _copy(cls, module: nn.Module) -> nn.Module:
        """Return a copy to work on, without the wrapper of `torch.compile(module)`."""
        original: nn.Module = getattr(module, "_orig_mod", module)
        return copy_module(original)

    def _tie_in(self) -> None:
        """Called after construction: sets the attributes that a framework expects on the predictor."""

    def _is_not_saved(self, what: str) -> str:
        name = type(self).__name__
        return (
            f"An {name} {what}: it answers from its store, and looks for deletion requests there. Load it again with "
            f"{name}.from_store({str(self.store.path)!r}, module); to save a standalone file, use "
            "served.export(path), or s3t export."
        )

    def _check_open(self) -> None:
        if self._closed:
            raise EnsembleError(
                f"This {type(self).__name__} is closed: it no longer sees deletion requests, so it does not answer. "
                f"Load {self.store.path} again with {type(self).__name__}.from_store(store, module)."
            )

    def _listeners(self) -> list[object]:
        """Return the listeners of requests."""
        return [self]

    @override
    def _request(self, ask: Callable[[Store], Answer]) -> Answer:
        self._check_open()
        return self._notifier.answer(self._listeners(), ask)

    def _load_survivors(self) -> None:
        candidates = self.store.candidates()
        best = survivors(candidates, {unit: found.score for unit, found in candidates.items()})
        self._digests = {unit: found.snapshot for unit, found in candidates.items()}
        self._snapshots.renew(self._digests)
        for shard in self.survivors.keys() - best.keys():
            self._shards.drop(shard)
        for unit in best.values():
            key = tuple(candidates[ancestor].snapshot for ancestor in unit.lineage)
            self._shards.load_survivor(unit, key, self._snapshots.load)
        heads = self.store.heads()
        solved_from = self._heads.renew(heads)
        self._floor_votes = heads[PRETRAINED].part.votes_per_shard_vote if PRETRAINED in heads else 0
        self._keys = self._shards.keys([*best, *(solved_from.keys() - best.keys())])
        for shard, digest in solved_from.items():
            self._keys[shard] = (*self._keys[shard], digest)

        def rank(unit: UnitId) -> tuple[int, float, int]:
            score = candidates[unit].score
            return unit.stage, -math.inf if score is None or math.isnan(score) else score, -unit.shard

        self._best = max(best.values(), key=rank).shard if best else FLOOR

    def _answer(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of the network; `forward` is its own."""
        if self._lock.answering:  # a shard's pass calls the network within itself
            return forward(*args, **kwargs)
        if torch.jit.is_tracing():
            raise UnsupportedError(self._is_not_saved("cannot be traced (TorchScript)"))
        with self._lock.held:
            keys = self._keys_in_use()
            while True:
                answer = self._ask(forward, keys, args, kwargs)
                before, keys = keys, self._keys_in_use()
                if keys == before:  # otherwise a request has arrived, and the answer must not be returned
                    return answer

    def _keys_in_use(self) -> dict[int, tuple[str, ...]]:
        """Look for requests, and return the keys of the shards that answer now."""
        self._check_open()
        if self._look() != self._as_of:
            self.refresh()
        if not self._keys and not self._has_units:
            raise NoSurvivorError(
                f"The closed-form head of {self.store.path} may not serve: requests have left none of its rows, or "
                "its first fit has not ended. Call trainer.fit with the same callback and store."
            )
        if not self._keys:
            raise NoSurvivorError(
                f"No shard of {self.store.path} has a unit left that may serve: requests have reached all of them, "
                "and no floor has rows left (S3T(floor=True) adds one). Call trainer.fit with the S3T callback and the "
                "same store: it trains them again without the forgotten data."
            )
        return {self._best: self._keys[self._best]} if self._aggregate == "single" else self._keys

    def _ask(self, forward: Any, keys: Keys, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the shards, each with its own cache if the caller has one."""
        caches = caches_in((args, kwargs))
        own = {id(cache): caches_of_shards(cache, keys) for cache in caches}
        reads_on = any(cache.get_seq_length() > 0 for cache in caches)
        with self._lock.taken(), filling(caches) if caches else nullcontext():
            outputs = self._run(forward, args, kwargs, keys, own)
        given = {id(mine): cache for cache in caches for mine in own[id(cache)].values()}
        outputs, begun = hand_over(outputs, keys, given)
        answer = self._aggregated(outputs, keys)
        if self._generation is not None and self._generation.running:
            return answer  # its caches have been checked
        if reads_on:
            form = self._passes.form_of(args, kwargs, list(keys))
            ask = functools.partial(self._ask_without_caches, forward, keys)
            self._reading.check(form, caches[0], args, kwargs, answer, ask)
        else:
            for cache in caches or begun:
                self._reading.note(cache, args, kwargs)
        return answer

    def _run(
        self,
        forward: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keys: Keys,
        caches: Mapping[int, Mapping[int, Any]],
    ) -> list[Any]:
        self._heads.solve(keys)
        return self._passes.run(forward, args, kwargs, list(keys), caches)

    @property
    def _has_units(self) -> bool:
        return self.store.manifest.method.has_units

    def _votes(self, keys: Keys) -> list[int] | None:
        """Return the number of votes of each shard next to a floor: one for each slice that it serves.

        The floor has two or four times as many as all shards have when they are whole: it learned from all rows, and a
        shard from one in m. So the fewer and shallower the shards, the more it weighs. Without a floor each shard has
        one, which is None.
        """
        if FLOOR not in keys:
            return None
        partition = self.store.partition
        whole = partition.all_shards * partition.slices
        return [self._floor_votes * whole if shard == FLOOR else self.survivors[shard].stage for shard in keys]

    def _ask_without_caches(self, forward: Any, keys: Keys, *args: Any, **kwargs: Any) -> Any:
        with self._lock.taken():
            outputs = self._run(forward, args, kwargs, keys, {})
        return self._aggregated(hand_over(outputs, keys, {})[0], keys)

    def _aggregated(self, outputs: list[Any], keys: Keys) -> Any:
        if self._aggregate == "single":
            return outputs[0]
        return aggregate_outputs(outputs, self._aggregate, self._votes(keys))

    def _generate(self, generation: CheckedGeneration, *args: Any, **kwargs: Any) -> Any:
        """Generate with the network's own `generate`, and again if a request has arrived in the meantime."""
        while True:
            with self._lock.held:
                keys = self._keys_in_use()
            try:
                text = generation(len(keys), *args, **kwargs)
            except RevokedError:
                if caches_in((args, kwargs)):  # the caller's cache is no longer valid
                    raise
                continue
            with self._lock.held:
                if self._keys_in_use() == keys:
                    return text

    def _intercept(self) -> CheckedGeneration | None:
        """Replace the network's forward and generate with the ensemble, and refuse calls that bypass it.

        They are set on the instance: the module's steps hold the network by whatever name they like, and ask for its
        class, its config and the signature of its forward.
        """
        layers, lock = self._builder.layers, self._lock
        network: Any = self._builder.network
        forward = network.forward
        network.forward = functools.wraps(forward)(lambda *args, **kwargs: self._answer(forward, args, kwargs))
        name = layers.network or type(self.module).__name__

        def refuse(module: nn.Module, args: Any) -> None:
            if not lock.answering:
                raise EnsembleError(
                    f"A step calls a part of the network ({type(module).__name__}) directly, bypassing "
                    f"{name}.forward(): only one model would answer, and it is not a survivor. Let the step call the "
                    f"network as a whole ({'self(x)' if not layers.network else f'self.{name}(x)'}), and put what it "
                    "does in between into the network's forward()."
                )

        # the blocks, and the replacements of their layers and of the head: copies keep the hook
        blocks = [path for group in layers.groups for path in group.modules]
        for path in dict.fromkeys((*blocks, *self._builder.originals)):
            self.module.get_submodule(path).register_forward_pre_hook(refuse)
        if not is_transformers_model(network) or not callable(getattr(network, "generate", None)):
            return None
        generation = CheckedGeneration(network, self._passes.is_half)
        generate = functools.wraps(network.generate)
        network.generate = generate(lambda *args, **kwargs: self._generate(generation, *args, **kwargs))
        return generation

    def _check_model(self) -> None:
        builder = self._builder
        self.store.check({"model": builder.describe_model()})
        check_effect(self.store.options.get("adapter_effect"), measure_effect(builder), str(self.store.path))


class _AnswerLock:
    """Only one thread at a time uses the backbone; a separate object, so that copies of a hook share it."""

    def __init__(self) -> None:
        self.held = threading.RLock()  # held by the thread that answers, or that changes the served units
        self._owner: int | None = None
        self._taken = False

    @property
    def answering(self) -> bool:
        """Whether this thread is in a shard's pass."""
        if torch.compiler.is_compiling():  # a compiled graph cannot ask which thread it is
            return self._taken
        return self._owner == threading.get_ident()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Answer while the block runs; other threads wait."""
        with self.held:
            self._owner, self._taken = threading.get_ident(), True
            try:
                yield
            finally:
                self._owner, self._taken = None, False


def _prepared(module: nn.Module, store: Store) -> nn.Module:
    training = store.manifest.training
    precision = training.precision if training is not None else ""
    halves = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    if precision in halves:  # Lightning has converted the module before it was trained
        module = module.to(halves[precision])
    for parameter in module.parameters():
        parameter.requires_grad = True  # unlike requires_grad_, for lazy ones too: their error comes later
    return module.eval()


def _builder_of(module: nn.Module, store: Store) -> StageBuilder:
    check_initialised(module)
    if store.manifest.layers is None:
        raise NoSurvivorError(
            f"Nothing in {store.path} may serve: no fit has come yet. Call trainer.fit with this store."
        )
    layers = Layers.of(store.manifest.layers, source="the store")
    paths = {name for name, _ in module.named_modules()}
    missing = [name for group in layers.groups for name in group.modules if name not in paths]
    if missing:
        raise StoreMismatchError(
            f"The store at {store.path} was trained with layers that {type(module).__name__} does not have: "
            f"{', '.join(missing[:5])}. Load the store with the module that it was trained with."
        )
    return StageBuilder(module, layers, resolve_adapter(store.manifest.adapter), store.partition.slices)
