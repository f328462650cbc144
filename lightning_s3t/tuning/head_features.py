"""The features of a closed-form head: the input of a linear layer, and the pooled outputs of layers below it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.tuning.nested import tensors_in
from lightning_s3t.tuning.ridge import normalise

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_MASK = "attention_mask"


class HeadFeatures:
    """Computes a closed-form head's features, when the network calls the linear layer that the head replaces.

    Without further layers, they are that layer's input. Otherwise the layers' outputs are pooled (`pool_output`) as the
    network computes them, and projected together with the input (`project`). Padded tokens are left out of the pooling
    if the network is called with an `attention_mask`.

    Args:
        root: The module.
        network: The path of its network.
        part: The settings of the floor.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> part = FloorPart(layer="2", layers=("0",), width=8, outputs=2, bits=8, target_step=1.0)
        >>> features = HeadFeatures(net, "", part)
        >>> features.attach()
        >>> _ = net(torch.randn(5, 4))
        >>> features.of(torch.randn(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, root: nn.Module, network: str, part: FloorPart) -> None:
        self._root = root
        self._network = network
        self._part = part
        self._outputs: dict[str, Tensor] = {}
        self._mask: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to pool the layers' outputs."""
        if not self._part.layers:
            return
        network = self._root.get_submodule(self._network)
        self._handles.append(network.register_forward_pre_hook(self._note_mask, with_kwargs=True))
        for path in self._part.layers:
            layer = self._root.get_submodule(path)
            self._handles.append(layer.register_forward_hook(functools.partial(self._note_output, path)))

    def detach(self) -> None:
        """Stop pooling."""
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()
        self._mask = None

    def of(self, inputs: Tensor) -> Tensor:
        """Return the features.

        Args:
            inputs: The input of the linear layer, `[rows, inputs]`. If the network has computed more rows at once, they
                are the last of these.

        Returns:
            `[rows, width]`.

        Raises:
            UnsupportedError: The network did not call a layer, or the layer's output does not have these rows.
        """
        if not self._part.layers:
            return inputs
        found = [inputs]
        for path in self._part.layers:
            output = self._outputs.pop(path, None)
            if output is None or len(output) < len(inputs):
                shape = None if output is None else tuple(output.shape)
                raise UnsupportedError(
                    f"The floor reads the output of {path}, which was {shape} for {len(inputs)} rows. Expected a "
                    "tensor with the rows first, before the head is called. Leave out `layers`."
                )
            found.append(output[-len(inputs) :])
        return project(found, self._part.width)

    def _note_mask(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get(_MASK)
        if mask is None and _MASK in (names := list(inspect.signature(network.forward).parameters)):
            place = names.index(_MASK)
            mask = args[place] if place < len(args) else None
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _note_output(self, path: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = next((tensor for _, tensor in tensors_in(output) if tensor.dim() > 1), None)
        if tensor is not None:
            convolution = _CONVOLUTIONS.get(tensor.dim())
            channels_first = convolution is not None and any(isinstance(m, convolution) for m in layer.modules())
            self._outputs[path] = pool_output(tensor, channels_first, self._mask)


def pool_output(output: Tensor, channels_first: bool = False, mask: Tensor | None = None) -> Tensor:
    """Return the mean of each row's output over its tokens or its places.

    Args:
        output: `[rows, width]`; `[rows, ..., width]`; or `[rows, width, ...]`.
        channels_first: Whether it is the last.
        mask: `[rows, tokens]`, 0 for padding. It may be of fewer rows, which are then repeated.

    Returns:
        `[rows, width]`, in float32 or wider.

    Example:
        >>> pool_output(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[2., 3.]])
        >>> pool_output(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), mask=torch.tensor([[1, 0]]))
        tensor([[1., 2.]])
    """
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    if wide.dim() == 2:
        return wide
    if channels_first:
        return wide.flatten(2).mean(2)
    if mask is not None and wide.dim() == 3 and mask.shape[1] == wide.shape[1] and len(wide) % len(mask) == 0:
        weights = mask.to(wide.dtype).repeat(len(wide) // len(mask), 1)
        return (wide * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1.0)
    return wide.flatten(1, -2).mean(1)


def project(parts: Sequence[Tensor], width: int) -> Tensor:
    """Return a fixed random projection of features (Johnson and Lindenstrauss, 1984; with signs, Achlioptas, 2003).

    Each part is first divided by each row's own mean absolute value. The projection does not depend on any data.

    Args:
        parts: Each `[rows, features]`.
        width: The number of features of the projection.

    Returns:
        `[rows, width]`.

    Example:
        >>> project([torch.ones(3, 4), torch.ones(3, 2)], width=16).shape
        torch.Size([3, 16])
    """
    found = [normalise(part) for part in parts]
    signs = [_signs(place, part.shape[1], width).to(part) for place, part in enumerate(found)]
    return torch.stack([part @ sign for part, sign in zip(found, signs, strict=True)]).sum(0)


@functools.lru_cache(maxsize=64)
def _signs(place: int, features: int, width: int) -> Tensor:
    # from a hash, which no release of torch changes
    digest = hashlib.shake_256(f"{place} {features} {width}".encode()).digest((features * width + 7) // 8)
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[: features * width]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1).reshape(features, width)
