"""Freezing: the only place where `requires_grad` and training modes are set for a unit, and restored afterwards."""

from __future__ import annotations

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.spectral_norm import SpectralNorm


def set_trainable(root: nn.Module, trainable: Iterable[nn.Parameter]) -> None:
    """Make exactly these parameters trainable, and freeze every other one.

    Args:
        root: The module with the parameters.
        trainable: The parameters that shall require a gradient; compared by identity, since equal values don't make
            two parameters one.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> set_trainable(net, net[1].parameters())
        >>> [p.requires_grad for p in net.parameters()]
        [False, False, True, True]
    """
    chosen = {id(parameter) for parameter in trainable}
    for parameter in root.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
        parameter.grad = None


def freeze_statistics(root: nn.Module, owned: Iterable[nn.Module] = ()) -> list[nn.Module]:
    """Put every layer with running statistics into eval mode, except those that the unit owns.

    In training mode such a layer (BatchNorm, InstanceNorm) writes the statistics of the data into the frozen part of
    the network, where they outlive a deletion. In training mode a module with spectral_norm continues its power
    iteration, which changes the frozen weights.

    Args:
        root: The module to go through.
        owned: Modules that the unit owns, with all below them.

    Returns:
        The layers that are now in eval mode because of this call.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        >>> _ = freeze_statistics(net, owned=[net[1]])
        >>> net[0].training, net[1].training
        (False, True)
    """
    tops = list(owned)
    adapted = [top.get_base_layer() for top in tops if isinstance(top, BaseTunerLayer)]
    kept = {id(module) for top in tops for module in top.modules()}
    kept -= {id(module) for layer in adapted for module in layer.modules()}
    frozen = [
        module for module in root.modules() if module.training and id(module) not in kept and _changes_itself(module)
    ]
    for module in frozen:
        module.eval()
    return frozen


def _changes_itself(module: nn.Module) -> bool:
    """Return whether a layer changes its own tensors in training, without an optimizer."""
    if isinstance(module, _NormBase):
        return bool(module.track_running_stats)
    # torch's two kinds of spectral_norm
    hooks = module._forward_pre_hooks.values()
    return type(module).__name__ == "_SpectralNorm" or any(isinstance(hook, SpectralNorm) for hook in hooks)


class ModuleFlags:
    """Remembers which parameters were trainable and which modules were in training mode.

    Args:
        root: The module whose flags are remembered.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> flags = ModuleFlags(net)
        >>> _ = net.requires_grad_(False).eval()
        >>> flags.restore()
        >>> net.weight.requires_grad, net.training
        (True, True)
    """

    def __init__(self, root: nn.Module) -> None:
        self._trainable = [(parameter, parameter.requires_grad) for parameter in root.parameters()]
        self._training = [(module, module.training) for module in root.modules()]

    def restore(self) -> None:
        """Restore all flags."""
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)
            parameter.grad = None
        for module, training in self._training:
            module.training = training
