"""A served stage as plain weights: the module's own parameter names, with adapters merged into their layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lightning_s3t.errors import AdapterError, UnsupportedError
from lightning_s3t.tuning.swap import ModuleSwap


def merged_weights(root: nn.Module, stand_ins: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the state dict of a module with some of its submodules replaced.

    Args:
        root: The module; it is as before when this returns.
        stand_ins: The modules, by the path of the module that each replaces. They are not changed.

    Returns:
        Copies on the CPU, by the module's own names.

    Raises:
        AdapterError: An adapter cannot be merged.
        UnsupportedError: The module ties parameters that now differ, or its state contains values other than tensors.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> other = nn.Linear(2, 1)
        >>> bool((merged_weights(net, {"1": other})["1.weight"] == other.weight).all())
        True
    """
    tied = _tied_names(root)
    swap = ModuleSwap(root, stand_ins)
    swap.install({name: _merged(name, module) for name, module in stand_ins.items()})
    try:
        state = root.state_dict()
    finally:
        swap.restore()
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UnsupportedError(
            f"The state of {type(root).__name__} holds {others[0]}, which is not a tensor (get_extra_state). Expected "
            "tensors alone: export the adapter (form='adapter')."
        )
    for names in tied:
        if any(not torch.equal(state[names[0]], state[name]) for name in names[1:]):
            raise UnsupportedError(
                f"{type(root).__name__} ties {', '.join(names)} together, and the survivor has a value of its own for "
                "each: loaded into the module, one would overwrite the other. Train and serve a module that does not "
                "tie them (transformers: tie_word_embeddings=False)."
            )
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _merged(name: str, module: nn.Module) -> nn.Module:
    if not isinstance(module, BaseTunerLayer):
        return module
    layer = copy.deepcopy(module)
    try:
        layer.merge(safe_merge=True)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"PEFT cannot merge the adapter of {name} into its layer: {error}. Export the adapter (form='adapter')."
        ) from error
    return layer.get_base_layer()


def _tied_names(root: nn.Module) -> list[list[str]]:
    """Return the names of parameters that are one and the same."""
    names: dict[int, list[str]] = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [found for found in names.values() if len(found) > 1]
