"""The floor's answers: the pretrained network, with a closed-form head in the place of its last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_s3t.core.floor import FloorPart
from lightning_s3t.serving.override_forward import Forward
from lightning_s3t.store.feature_sums import FeatureSums
from lightning_s3t.tuning.ridge import RidgeHead, normalise, solve_head
from lightning_s3t.tuning.stages import StageBuilder
from lightning_s3t.tuning.swap import ModuleSwap


class FloorPass(nn.Module):
    """A pass of the network in which the closed-form head answers.

    It moves between devices with the module that it is registered in.

    Args:
        builder: What built the shards' stand-ins; its `start` is the head that the features were read with.
        part: The layer whose place the closed-form head takes.
    """

    def __init__(self, builder: StageBuilder, part: FloorPart) -> None:
        super().__init__()
        self._swap = ModuleSwap(builder.root, builder.originals)
        heads = builder.build_start()
        self._layer = _RidgeLayer(part.width, part.outputs)
        for name in heads:
            if name == part.layer:
                heads[name] = self._layer
            elif part.layer.startswith(f"{name}."):
                heads[name].set_submodule(part.layer.removeprefix(f"{name}."), self._layer)
        self._names = list(heads)
        self.heads = nn.ModuleList(heads.values())
        self.requires_grad_(False)
        self.eval()

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        # what is served is in the store, and a checkpoint would outlive a request
        found: dict[str, Any] = kwargs.get("destination") or (args[0] if args else {})
        return found

    def load(self, sums: FeatureSums) -> None:
        """Solve the head anew, in the place of the one before.

        Args:
            sums: What it is solved from.
        """
        self._layer.load(solve_head(sums))

    def run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the floor's answer.

        Args:
            forward: The network's own forward.
            args: What it is called with.
            kwargs: Likewise.
        """
        try:
            self._swap.install(dict(zip(self._names, self.heads, strict=True)))
            return forward(*args, **kwargs)
        finally:
            self._swap.restore()


class _RidgeLayer(nn.Linear):
    """A closed-form head where the network has a linear layer; networks look at its attributes."""

    def load(self, head: RidgeHead) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.weight.data = head.weight.to(self.weight.device)
            self.bias.data = head.bias.to(self.bias.device)

    @override
    def forward(self, features: Tensor) -> Tensor:
        answer = nn.functional.linear(normalise(features), self.weight.float(), self.bias.float())
        return answer.to(features.dtype)
