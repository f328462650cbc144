"""The guard: proof at run time that a unit changed nothing but its own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lightning_s3t.errors import LeakageError
from lightning_s3t.tuning.fingerprint import fingerprints


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer of a module, those outside its state dict too, by name.

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


class LeakageGuard:
    """Compares everything that a unit does not own before and after its training.

    What the unit does not own, it must leave as it was: a statistic that is updated by the way (BatchNorm), a buffer
    that `training_step` writes, a frozen weight that an optimizer still holds would carry one slice's data into units
    that never saw it, where no deletion would reach it.

    Args:
        module: The module as the unit trains it.
        owned: The names of the tensors that the unit owns. Names and not identities, since a buffer may be replaced
            by assignment and a module moved between devices.
        others: More modules that must not change (originals that were swapped out), by name.

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

    def __init__(self, module: nn.Module, owned: Iterable[str], others: Mapping[str, nn.Module] | None = None) -> None:
        self._module = module
        self._owned = frozenset(owned)
        self._others = dict(others or {})
        self._before = self._state()

    def check(self, what: str) -> None:
        """Raises if anything that the unit does not own has moved.

        Args:
            what: Who was trained, for the message.

        Raises:
            LeakageError: Naming the tensors that changed, appeared or disappeared.
        """
        after = self._state()
        changed = [name for name in self._before if name in after and after[name] != self._before[name]]
        changed += [f"{name} (new)" for name in after.keys() - self._before.keys()]
        changed += [f"{name} (gone)" for name in self._before.keys() - after.keys()]
        if changed:
            raise LeakageError(
                f"While {what} was trained, what it does not own changed: {', '.join(sorted(changed))}. "
                "Its data would outlive a deletion there, so the unit is not kept. Don't write these tensors in "
                "training (keep statistics in eval mode, buffers and frozen weights untouched), or name the module "
                "that holds them as part of the head: S3T(head=[...])."
            )

    def _state(self) -> dict[str, tuple[int, torch.dtype, torch.Size]]:
        # bits alone don't tell zeros from more zeros
        tensors = self._guarded()
        return {n: (bits, tensors[n].dtype, tensors[n].shape) for n, bits in fingerprints(tensors).items()}

    def _guarded(self) -> dict[str, Tensor]:
        every = named_tensors(self._module)
        # a tensor of the unit's may be registered under further names
        owned = {id(every[name]) for name in self._owned if name in every}
        tensors = {name: tensor for name, tensor in every.items() if id(tensor) not in owned}
        for prefix, module in self._others.items():
            for name, tensor in named_tensors(module).items():
                tensors[f"{prefix}.{name} (pretrained)"] = tensor
        return tensors
