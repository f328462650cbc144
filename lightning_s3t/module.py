"""S3TModule: the user's LightningModule, answering as the ensemble of each shard's best survivor."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_s3t.callbacks.lightning_internals import copy_uncompiled
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
from lightning_s3t.serving.notifier import Notifier, listeners_of
from lightning_s3t.store import Receipt, Store
from lightning_s3t.tuning.adapter_effect import check_effect, measure_effect
from lightning_s3t.tuning.adapters import resolve_adapter
from lightning_s3t.tuning.finders.transformers_models import is_transformers_model
from lightning_s3t.tuning.fingerprint import digest_tensors
from lightning_s3t.tuning.layers import LayerGroup, Layers
from lightning_s3t.tuning.serving.cache_checks import CheckedGeneration, CheckedReading
from lightning_s3t.tuning.serving.caches import Keys, caches_in, caches_of_shards, filling, hand_over
from lightning_s3t.tuning.serving.ensemble import AGGREGATES, Aggregate, aggregate_outputs
from lightning_s3t.tuning.serving.passes import PASSES, Passes, ShardPasses
from lightning_s3t.tuning.serving.served import ServedShards
from lightning_s3t.tuning.serving.standby import Standby
from lightning_s3t.tuning.serving.turn import Turn
from lightning_s3t.tuning.stages import StageBuilder

Self = TypeVar("Self", bound="S3TModule")


class S3TModule(pl.LightningModule):
    """A LightningModule around the user's, whose network answers as an ensemble.

    Steps, metrics and hooks stay the user's: `trainer.test(served, dm)` runs their `test_step`, and where that calls
    the network, each shard's best survivor answers and the answers are put together. There is one backbone; the
    shards' adapters and heads take turns on it, and what none of them adapts is computed once. A shard without a
    survivor is left out. Threads may ask at once: they
    are answered one after the other.

    It works on a copy, so the user's module can be trained again meanwhile. A request from another process is
    noticed before the next answer.

    Args:
        module: The user's module, with its pretrained weights.
        store: The opened store.
        aggregate: How answers are put together; None for what the store was trained with.
        passes: Whether the shards are asked "in_turn", or "together" in one pass of all their rows; "auto" is together
            on a GPU.
        standby: Keep all units that may become survivors in the host's memory, so that nothing is read from disk after
            a request.

    Raises:
        StoreMismatchError: The module is not the one that the store was trained with.

    Example:
        >>> S3TModule.load("runs/none", pl.LightningModule())
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.StoreError: ...
    """

    def __init__(
        self,
        module: pl.LightningModule,
        store: Store,
        aggregate: Aggregate | None = None,
        passes: Passes = "auto",
        standby: bool = False,
    ) -> None:
        super().__init__()
        if passes not in PASSES:
            raise ConfigurationError(f"Expected argument `passes` to be one of {PASSES} but got {passes!r}.")
        chosen = aggregate or store.options.get("aggregate", "mean_logits")
        if chosen not in AGGREGATES:
            raise ConfigurationError(f"Expected argument `aggregate` to be one of {AGGREGATES} but got {chosen!r}.")
        self.aggregate = chosen
        self.store = store
        self.module = _copy_for_serving(module, store)
        self._builder = _builder_of(self.module, store)
        self._check_model()
        self._shards = ServedShards(self._builder)
        self._passes = ShardPasses(self._builder, self._shards, passes)
        self._standby = Standby(store.load, standby)
        self._scores: dict[int, float] = {}
        self._as_of = -1
        self._turn = Turn()
        self._generation: CheckedGeneration | None = None
        self._reading = CheckedReading()
        self._intercept()
        self._delegate()
        self.requires_grad_(False)
        self.refresh()
        self._notifier = Notifier(store)
        self._notifier.join([self])

    @classmethod
    def load(
        cls: type[Self],
        store: str | Path,
        module: pl.LightningModule,
        aggregate: Aggregate | None = None,
        passes: Passes = "auto",
        standby: bool = False,
    ) -> Self:
        """Loads what a store holds for serving.

        Args:
            store: The store's folder.
            module: The user's module, with the pretrained weights that it was given to `fit` with. It is copied. A
                head that was drawn at random may differ: each unit has its own.
            aggregate: How answers are put together; None for what the store was trained with. "single" lets the
                best survivor of all shards answer alone, for the cost of one model.
            passes: Whether the shards are asked "in_turn", or "together" in one pass of all their rows; "auto" is
                together on a GPU.
            standby: Keep all units that may become survivors in the host's memory, so that nothing is read from disk
                after a request.

        Raises:
            StoreError: There is no store, or it is damaged.
            StoreMismatchError: The module is not the one that the store was trained with.
        """
        return cls(module, Store.open(store), aggregate, passes, standby)

    def forget(self, subjects: Iterable[Any], strict: bool = True) -> Receipt:
        """Removes subjects from the model: milliseconds, and for good.

        The units that they reached are revoked in one transaction and erased; what serves on is what they did not
        reach. `on_forget(receipt)` is called on the user's module and on the trainer's callbacks that have it.

        Args:
            subjects: Their ids.
            strict: Refuse a request that names a subject which the store has never seen.

        Returns:
            What was revoked and erased, and what serves now.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set; nothing has changed then.
        """
        return self._notifier.forget(subjects, strict, [self, *listeners_of(self._trainer)])

    def on_forget(self, receipt: Receipt) -> None:
        """Called once for each request, whoever made it: takes up what survives, and tells the module.

        Args:
            receipt: What was carried out.
        """
        self.refresh()
        hook = getattr(self.module, "on_forget", None)
        if callable(hook):
            hook(receipt)

    def refresh(self) -> None:
        """Takes up what the store holds now: survivors after a deletion, new units after a fit."""
        with self._turn.lock:
            self._refresh()

    def _refresh(self) -> None:
        while True:
            as_of = self.store.request_number
            try:
                self._take_up()
            except RevokedError:
                continue  # revoked by another process between the look and the load
            except DamagedError as error:
                rank_zero_warn(f"{error} Its shard serves what is whole.")
                self.store.take_out_damaged()
                continue
            if as_of == self.store.request_number:
                self._as_of = as_of
                return

    @property
    def survivors(self) -> dict[int, UnitId]:
        """The unit that each shard serves; shards without one are absent."""
        return self._shards.survivors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answers as the user's module does, with the ensemble in the place of its network.

        Args:
            args: For the user's `forward`.
            kwargs: For the user's `forward`.
        """
        return self.module(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates with the ensemble, token by token: each shard reads the text so far with a cache of its own.

        If a deletion request comes in meanwhile, the text is begun again with the survivors.

        Args:
            args: For the user's `generate`, if the module has one, or else for the network's (transformers').
            kwargs: Likewise.

        Raises:
            EnsembleError: Neither has one.
        """
        network = self.module.get_submodule(self._builder.layers.network)
        generate = getattr(type(self.module), "generate", None) and self.module.generate  # type: ignore[operator]
        generate = generate or getattr(network, "generate", None)
        if not callable(generate):
            raise EnsembleError(
                f"Neither {type(self.module).__name__} nor its network {type(network).__name__} can generate. Expected "
                "a language model of transformers, or a module with a generate() of its own."
            )
        while True:
            try:
                return generate(*args, **kwargs)
            except RevokedError:
                if caches_in((args, kwargs)):  # the caller's cache is of no use any more
                    raise

    def setup(self, stage: str) -> None:
        """Called when a run begins: a served model is not trained.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            UnsupportedError: The run is a fit.
        """
        if stage == "fit":
            raise UnsupportedError(
                "An S3TModule serves what is trained; it is not trained itself. Give trainer.fit your own module, and "
                "the trainer the S3T callback with the same store: it trains what is missing."
            )
        self.module.setup(stage)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: a checkpoint may hold what has been revoked since.

        Args:
            args: Without effect.
            kwargs: Without effect.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "An S3TModule is loaded from its store, which knows what has been revoked: S3TModule.load(store, module). "
            "For the pretrained weights, load the checkpoint into your own module before."
        )

    def train(self: Self, mode: bool = True) -> Self:
        """Stays in eval mode: a served model draws no dropout and collects no statistics.

        Args:
            mode: Without effect.
        """
        return super().train(False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "module" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.module, name)

    def _take_up(self) -> None:
        candidates = self.store.candidates()
        best = survivors(candidates, {u: found.score for u, found in candidates.items() if found.score is not None})
        self._standby.renew({unit: found.snapshot for unit, found in candidates.items()})
        for shard in self.survivors.keys() - best.keys():
            self._shards.drop(shard)
        for unit in best.values():
            key = tuple(candidates[ancestor].snapshot for ancestor in unit.lineage)
            self._shards.take_up(unit, key, self._standby.load)
        scores = {shard: candidates[unit].score for shard, unit in self.survivors.items()}
        self._scores = {shard: -math.inf if score is None else score for shard, score in scores.items()}

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        if self._turn.mine:
            return self._network_forward(*args, **kwargs)
        with self._turn.lock:
            while True:
                keys = self._keys_in_use()
                answer = self._ask(keys, args, kwargs)
                if self._keys_in_use() == keys:  # else a request came in meanwhile, and the answer must not leave
                    return answer

    def _keys_in_use(self) -> dict[int, tuple[str, ...]]:
        """Looks for requests, and returns what the shards that are asked now serve with."""
        if self.store.request_number != self._as_of:
            self.refresh()
        if not self.survivors:
            raise NoSurvivorError(
                f"No shard of {self.store.path} has a unit left that may serve: deletions have reached them all. "
                "Call trainer.fit with the S3T callback and the same store: it trains them again without the "
                "forgotten."
            )
        return {shard: self._shards.key(shard) for shard in self._asked_shards()}

    def _ask(self, keys: Keys, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Asks the shards, each with a cache of its own where the caller has one."""
        caches = caches_in((args, kwargs))
        own = {id(cache): caches_of_shards(cache, keys) for cache in caches}
        reads_on = any(cache.get_seq_length() > 0 for cache in caches)
        with self._turn.taken(), filling(caches):
            outputs = self._passes.run(self._network_forward, args, kwargs, list(keys), own)
        given = {id(mine): cache for cache in caches for mine in own[id(cache)].values()}
        answer = self._aggregated(hand_over(outputs, keys, given))
        if self._generation is not None and self._generation.running:
            return answer  # its caches have been checked
        if reads_on:
            form, half = self._passes.form_of(args, kwargs, list(keys)), self._passes.is_half()
            self._reading.check(form, caches[0], args, kwargs, answer, functools.partial(self._ask_plainly, keys), half)
        else:
            for cache in caches or caches_in(answer):
                self._reading.note(cache, args, kwargs)
        return answer

    def _ask_plainly(self, keys: Keys, *args: Any, **kwargs: Any) -> Any:
        with self._turn.taken():
            outputs = self._passes.run(self._network_forward, args, kwargs, list(keys), {})
        return self._aggregated(hand_over(outputs, keys, {}))

    def _aggregated(self, outputs: list[Any]) -> Any:
        return outputs[0] if self.aggregate == "single" else aggregate_outputs(outputs, self.aggregate)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates with the network's own `generate`, once more where a request has come in meanwhile."""
        assert self._generation is not None
        while True:
            with self._turn.lock:
                keys = self._keys_in_use()
            try:
                text = self._generation(len(keys), *args, **kwargs)
            except RevokedError:
                if caches_in((args, kwargs)):  # the caller's cache is of no use any more
                    raise
                continue
            with self._turn.lock:
                if self._keys_in_use() == keys:
                    return text

    def _asked_shards(self) -> list[int]:
        if self.aggregate != "single":
            return list(self.survivors)
        return [max(self.survivors, key=lambda shard: (self.survivors[shard].stage, self._scores[shard], -shard))]

    def _intercept(self) -> None:
        """Puts the ensemble in the place of the network's forward, and refuses ways around it."""
        layers, turn = self._builder.layers, self._turn
        network: Any = self.module.get_submodule(layers.network)
        self._network_forward = network.forward
        # generation asks for the signature of forward
        network.forward = functools.wraps(network.forward)(lambda *args, **kwargs: self._answer(*args, **kwargs))
        if is_transformers_model(network) and callable(getattr(network, "generate", None)):
            own = network.generate
            self._generation = CheckedGeneration(network, self._passes.is_half)
            network.generate = functools.wraps(own)(lambda *args, **kwargs: self._generate(*args, **kwargs))
        name = layers.network or type(self.module).__name__

        def refuse(module: nn.Module, args: Any) -> None:
            if not turn.mine:
                raise EnsembleError(
                    f"A step calls a part of the network ({type(module).__name__}) by itself, past {name}.forward(): "
                    "only one model would answer, and not a survivor. Let the step call the network as a whole "
                    f"({'self(x)' if not layers.network else f'self.{name}(x)'}), and put what it does in between "
                    "into the network's forward()."
                )

        # heads of survivors are copies, and copies keep the hook
        for path in (*layers.head, *(group.modules[-1] for group in layers.groups)):
            self.module.get_submodule(path).register_forward_pre_hook(refuse)

    def _delegate(self) -> None:
        """Lets Lightning find the user's steps, hooks and dataloaders on this module."""
        module = self.module
        for name in dir(type(module)):
            own = getattr(pl.LightningModule, name, None)
            if name.startswith("_") or own is None or name in vars(S3TModule) or not callable(own):
                continue
            if getattr(type(module), name) is not own:
                setattr(self, name, getattr(module, name))
        module.log = self.log  # type: ignore[method-assign]
        module.log_dict = self.log_dict  # type: ignore[method-assign]

    def _check_model(self) -> None:
        builder = self._builder
        heads = {name: list(tensor.shape) for name, tensor in builder.base_tensors().items()}
        model = {"pretrained_sha256": digest_tensors(builder.frozen_tensors()), "head_shapes": heads}
        self.store.check({"model": model})
        check_effect(self.store.options.get("adapter_effect"), measure_effect(builder), str(self.store.path))


def _copy_for_serving(module: pl.LightningModule, store: Store) -> pl.LightningModule:
    if isinstance(module, S3TModule):
        raise ConfigurationError("The module is an S3TModule already. Expected your own LightningModule.")
    copied = copy_uncompiled(module)
    copied.configure_model()
    precision = str(store.settings.get("training", {}).get("precision", ""))
    halves = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    if precision in halves:  # Lightning has converted the module before it was trained
        copied = copied.to(halves[precision])
    return copied.requires_grad_(True).eval()


def _builder_of(module: pl.LightningModule, store: Store) -> StageBuilder:
    kept = store.settings["layers"]
    groups = tuple(LayerGroup(index, tuple(names)) for index, names in enumerate(kept["groups"], start=1))
    layers = Layers(kept["network"], groups, tuple(kept["head"]), source="the store")
    paths = {name for name, _ in module.named_modules()}
    missing = [name for group in groups for name in group.modules if name not in paths]
    if missing:
        raise StoreMismatchError(
            f"The store at {store.path} was trained with layers that {type(module).__name__} does not have: "
            f"{', '.join(missing[:5])}. Load it with the module that it was trained with."
        )
    return StageBuilder(module, layers, resolve_adapter(store.settings["adapter"]))
