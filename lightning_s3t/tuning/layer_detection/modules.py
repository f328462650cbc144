"""The structure of modules: predicates that all finders share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_s3t.tuning.layer_detection.paths import has_parameters, join


def parts(module: nn.Module, path: str) -> list[str]:
    """Return the paths of a module's children that have parameters; one that is registered twice counts once.

    Args:
        module: The module.
        path: Its path.

    Example:
        >>> parts(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "net")
        ['net.0', 'net.2']
    """
    return [join(path, name) for name, child in module.named_children() if has_parameters(child)]


def is_list(module: nn.Module) -> bool:
    """Return whether a module only holds others in order.

    Args:
        module: The module.
    """
    return isinstance(module, (nn.ModuleList, nn.Sequential))


def has_parts(module: nn.Module) -> bool:
    """Return whether a module consists of others with parameters: true for a block, false for a layer.

    Args:
        module: The module.
    """
    return any(has_parameters(child) for child in module.children())


def is_callable(module: nn.Module) -> bool:
    """Return whether a module has a forward() of its own: a ModuleList or ModuleDict has none.

    Args:
        module: The module.
    """
    return type(module).forward is not nn.Module.forward


def expand(root: nn.Module, paths: Sequence[str]) -> tuple[str, ...]:
    """Return modules that are called: of a ModuleList, its elements.

    Args:
        root: The module that paths start at.
        paths: Modules with parameters.
    """
    found: list[str] = []
    for path in paths:
        module = root.get_submodule(path)
        held = isinstance(module, (nn.ModuleList, nn.ModuleDict)) and not is_callable(module)
        found += expand(root, parts(module, path)) if held else [path]
    return tuple(dict.fromkeys(found))


def count_layers(module: nn.Module) -> int:
    """Count the layers with a weight matrix or a kernel: normalisations, scales and biases are none.

    Args:
        module: The module.

    Example:
        >>> count_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Conv2d(1, 1, 3)))
        2
    """
    return sum(
        any(parameter.ndim > 1 for parameter in inner.parameters(recurse=False))
        for inner in module.modules()
        if not isinstance(inner, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))
    )


def is_from(module: nn.Module, library: str) -> bool:
    """Return whether a module's class, or one that it inherits from, is of a library, without importing the library.

    Args:
        module: The module.
        library: The library's import name, as "timm.models".
    """
    return any(f"{kind.__module__}.".startswith(f"{library}.") for kind in type(module).__mro__)
