"""Numbers of input and output channels of layers, which show whether modules follow each other in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_s3t.tuning.layer_detection.modules import has_parts


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers with a weight matrix or a kernel, in the order in which they are registered.

    Args:
        module: The module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 1)))
        >>> [name for name, _ in layers_of(net)]
        ['0', '2.0']
    """
    for name, inner in module.named_modules():
        if not has_parts(inner) and any(parameter.ndim > 1 for parameter in inner.parameters(recurse=False)):
            yield name, inner


def width_in(module: nn.Module) -> int | None:
    """Return the number of input channels of a module's first layer; None if unknown.

    Args:
        module: The module.

    Example:
        >>> width_in(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)))
        3
    """
    first = _first(module)
    return None if first is None else _width(first, "in_features", "in_channels", "input_size")


def width_out(module: nn.Module) -> int | None:
    """Return the number of output channels of a module's last layer; None if unknown.

    Args:
        module: The module.

    Example:
        >>> width_out(nn.LSTM(3, 8, bidirectional=True)), width_out(nn.Embedding(90, 16))
        (16, 16)
    """
    last = _last(module)
    if last is None:
        return None
    width = _width(last, "out_features", "out_channels", "hidden_size")
    if isinstance(last, nn.RNNBase) and width is not None:
        return (last.proj_size or width) * (2 if last.bidirectional else 1)
    return last.embedding_dim if isinstance(last, (nn.Embedding, nn.EmbeddingBag)) else width


def follows(before: nn.Module, after: nn.Module, at_least: bool = False) -> bool:
    """Return whether a module can take another's output: the same number of channels, or those of a flattened image.

    Args:
        before: The one.
        after: The other.
        at_least: Whether it may take any larger number, as where a skip connection joins.
    """
    given, taken = width_out(before), width_in(after)
    if given is None or taken is None:
        return False
    if at_least or taken == given:
        return taken >= given
    pictures = isinstance(_last(before), _ConvNd) and isinstance(_first(after), nn.Linear)
    return pictures and taken % given == 0


def _first(module: nn.Module) -> nn.Module | None:
    return next((layer for _, layer in layers_of(module)), None)


def _last(module: nn.Module) -> nn.Module | None:
    return next((layer for _, layer in reversed(list(layers_of(module)))), None)


def _width(layer: nn.Module, *names: str) -> int | None:
    known = isinstance(layer, (nn.Linear, _ConvNd, nn.RNNBase)) or type(layer).__name__ == "Conv1D"
    found = [getattr(layer, name) for name in names if hasattr(layer, name)] if known else []
    return int(found[0]) if found else None
