"""The guard: proof at run time that a unit changed nothing but its own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_s3t.errors import LeakageError
from lightning_s3t.tuning.fingerprint import fingerprints


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a module, those outside its state dict too, by name.

    Args:
        module: Any module.

    Example:
        >>> sorted(named_tensors(nn.BatchNorm1d(2)))
        ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@dataclass(frozen=True)
class TensorState:
    """The contents of a tensor.

    Attributes:
        bits: Its fingerprint, which alone does not distinguish zeros of different shapes.
        dtype: Its type.
        shape: Its shape.
    """

    bits: int
    dtype: torch.dtype
    shape: torch.Size


def states_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorState]:
    """Return the current contents of tensors, by name.

    Args:
        tensors: The tensors by name.
    """
    return {n: TensorState(bits, tensors[n].dtype, tensors[n].shape) for n, bits in fingerprints(tensors).items()}


class Baseline:
    """The contents of a module before any unit of a fit is trained, which every unit must leave unchanged.

    Create it before the first unit and before any submodule is replaced, so that no unit can contaminate the reference.

    Args:
        module: The module.

    Attributes:
        states: Its tensors' states, by name.

    Example:
        >>> Baseline(nn.Linear(1, 1)).states["weight"].shape
        torch.Size([1, 1])
    """

    def __init__(self, module: nn.Module) -> None:
        # they are held, so that no other tensor can get their identity
        self._tensors = named_tensors(module)
        self.states = states_of(self._tensors)
        self._by_identity = {id(tensor): self.states[name] for name, tensor in self._tensors.items()}

    def of(self, tensor: Tensor) -> TensorState | None:
        """Return the earlier contents of a tensor, whatever its name is now; None for a new one.

        Args:
            tensor: Any tensor.
        """
        return self._by_identity.get(id(tensor))


class LeakageGuard:
    """Compares everything that a unit does not own before and after its training.

    A unit must leave everything that it does not own unchanged: an updated statistic (BatchNorm), a buffer that
    `training_step` writes, or a frozen weight that an optimizer still holds would carry one slice's data into units
    that never saw it, where no deletion would reach it.

    With a baseline, tensors that existed before the first unit are compared with it, so changes between two units are
    detected too; replacement modules (the frozen adapters of earlier stages) are compared with their state when the
    guard was created.

    Args:
        module: The module as the unit trains it.
        owned: The names of the tensors that the unit owns. Names and not identities, since a buffer may be replaced
            by assignment and a module moved between devices.
        others: Further modules that must not change (originals that were swapped out), by the path in `module` of their
            replacements.
        baseline: The state of `module` before the first unit; None to start from its current state.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> guard = LeakageGuard(net, owned=["1.weight", "1.bias"])
        >>> _ = net[1].weight.data.zero_()
        >>> guard.check("unit 0/0")
        >>> _ = net[0].weight.data.zero_()
        >>> guard.check("unit 0/0")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.LeakageError: While unit 0/0 was trained, what it does not own changed: 0.weight. ...
    """

    def __init__(
        self,
        module: nn.Module,
        owned: Iterable[str],
        others: Mapping[str, nn.Module] | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        self._module = module
        self._owned = frozenset(owned)
        self._others = dict(others or {})
        self._before = states_of(self._guarded()) if baseline is None else self._expected(baseline)

    def check(self, what: str) -> None:
        """Raise if anything that the unit does not own has moved.

        Args:
            what: The trained unit, for the message.

        Raises:
            LeakageError: Naming the tensors that changed, appeared or disappeared.
        """
        after = states_of(self._guarded())
        changed = [name for name in self._before if name in after and after[name] != self._before[name]]
        changed += [f"{name} (new)" for name in after.keys() - self._before.keys()]
        changed += [f"{name} (gone)" for name in self._before.keys() - after.keys()]
        if changed:
            raise LeakageError(
                f"While {what} was trained, what it does not own changed: {', '.join(sorted(changed))}. "
                "Its data would outlive a deletion there, so the unit is not kept. Don't write these tensors in "
                f"training (keep statistics in eval mode, buffers and frozen weights untouched), {_into_head(changed)}"
            )

    def _guarded(self) -> dict[str, Tensor]:
        return {**self._in_module(), **self._in_others()}

    def _in_module(self) -> dict[str, Tensor]:
        every = named_tensors(self._module)
        # a tensor of the unit's may be registered under further names
        owned = {id(every[name]) for name in self._owned if name in every}
        return {name: tensor for name, tensor in every.items() if id(tensor) not in owned}

    def _in_others(self) -> dict[str, Tensor]:
        return {
            _pretrained(f"{path}.{name}"): tensor
            for path, module in self._others.items()
            for name, tensor in named_tensors(module).items()
        }

    def _expected(self, baseline: Baseline) -> dict[str, TensorState]:
        """Return the required contents of the guarded tensors after the unit was trained."""
        swapped, originals = self._swapped_places(), tuple(f"{path}." for path in self._others)
        expected = {
            name: state
            for name, state in baseline.states.items()
            if name not in self._owned and not name.startswith(swapped)
        }
        expected.update(
            {_pretrained(name): state for name, state in baseline.states.items() if name.startswith(originals)}
        )
        # elsewhere, a name that the baseline lacks is one too many, whatever it holds
        stand_ins = {name: tensor for name, tensor in self._in_module().items() if name.startswith(swapped)}
        known = {name: state for name, tensor in stand_ins.items() if (state := baseline.of(tensor)) is not None}
        fresh = states_of({name: tensor for name, tensor in stand_ins.items() if name not in known})
        return {**expected, **known, **fresh}

    def _swapped_places(self) -> tuple[str, ...]:
        """Return the paths of replaced parts in the module, for every place where they are registered."""
        stand_ins = {
            id(stand_in)
            for path, original in self._others.items()
            if (stand_in := self._module.get_submodule(path)) is not original
        }
        modules = self._module.named_modules(remove_duplicate=False)
        return tuple(f"{path}." for path, module in modules if id(module) in stand_ins)


def _into_head(changed: Iterable[str]) -> str:
    """Explain how to make a tensor that a step must write the unit's own: a head consists of modules."""
    at_root = [name for name in changed if "." not in name]
    if not at_root:
        return "or name the module that holds them as part of the head: S3T(head=[...])."
    return (
        f"or make them the unit's own: move {', '.join(at_root)} into a module of its own (self.memory = Memory(), an "
        "nn.Module with that buffer), and name it as part of the head: S3T(head=['...', 'memory'])."
    )


def _pretrained(name: str) -> str:
    return f"{name} (pretrained)"
