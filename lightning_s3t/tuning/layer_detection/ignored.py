"""Modules that are not part of a network: metrics, losses, and everything without parameters."""

from __future__ import annotations

import sys

from torch import nn

from lightning_s3t.tuning.layer_detection.names import names_loss
from lightning_s3t.tuning.layer_detection.paths import has_parameters, lies_in_any


def find_ignored(root: nn.Module) -> tuple[str, ...]:
    """Return the paths of the outermost modules that are not part of the network.

    Losses and metrics may hold whole networks (a perceptual loss, an inception distance) that must not be trained.

    Args:
        root: A LightningModule, or a network.

    Example:
        >>> find_ignored(nn.ModuleDict({"net": nn.Linear(1, 1), "style_loss": nn.Linear(1, 1), "act": nn.ReLU()}))
        ('style_loss', 'act')
    """
    found: list[str] = []
    for path, module in root.named_modules():
        if path and not lies_in_any(path, found) and _stands_beside(path, module):
            found.append(path)
    return tuple(found)


def find_losses(root: nn.Module) -> tuple[str, ...]:
    """Return the paths of the losses and metrics in a module, of those in each other too.

    Args:
        root: A LightningModule, or a network.

    Example:
        >>> find_losses(nn.ModuleDict({"net": nn.Linear(1, 1), "criterion": nn.MSELoss(), "act": nn.ReLU()}))
        ('criterion',)
    """
    return tuple(path for path, module in root.named_modules() if path and _is_loss(path, module))


def _stands_beside(path: str, module: nn.Module) -> bool:
    return not has_parameters(module) or _is_loss(path, module)


def _is_loss(path: str, module: nn.Module) -> bool:
    return _is_metric(module) or names_loss(path.rpartition(".")[2]) or names_loss(type(module).__name__)


def _is_metric(module: nn.Module) -> bool:
    library = sys.modules.get("torchmetrics")  # a predictor does not need it, and neither do modules without metrics
    return library is not None and isinstance(module, (library.Metric, library.MetricCollection))
