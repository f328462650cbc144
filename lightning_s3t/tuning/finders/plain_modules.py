"""Hand-written modules: the one long ModuleList or Sequential, and what comes after it as head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_s3t.errors import LayersError
from lightning_s3t.tuning.finders.found import Found
from lightning_s3t.tuning.finders.paths import has_parameters, join, lies_in


def find_in_plain_module(root: nn.Module, ignored: Sequence[str], slices: int) -> Found | None:
    """Finds the longest list of layers in a module that is of no known library.

    Args:
        root: The module.
        ignored: Paths that are no part of the network (metrics).
        slices: How many blocks are wanted.

    Returns:
        What was found; None if there is no list of at least two layers.

    Raises:
        LayersError: Two lists are equally long.
    """
    lists = _lists(root, ignored, max(slices, 2)) or _lists(root, ignored, 2)
    if not lists:
        return None
    longest = max(map(len, lists.values()))
    chosen = [name for name, children in lists.items() if len(children) == longest]
    if len(chosen) > 1:
        raise LayersError(
            f"{type(root).__name__} has {len(chosen)} lists of {longest} layers: "
            f"{', '.join(name or 'the module itself' for name in chosen)}. Expected one that is longest. Name the one "
            f"to train: layers={chosen[-1]!r}, and head=..."
        )
    name, children = chosen[0], lists[chosen[0]]
    head = tuple(children[-1:]) if _ends_in_head(root, name, children, ignored) else ()
    blocks = children[: len(children) - len(head)]
    return Found(None, [(path,) for path in blocks], head, f"the longest list of layers, {name or 'the module'}")


def _lists(root: nn.Module, ignored: Sequence[str], least: int) -> dict[str, list[str]]:
    """Returns the lists of at least so many layers with parameters, without those inside of another's layers."""
    lists: dict[str, list[str]] = {}
    for name, module in root.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or any(lies_in(name, path) for path in ignored):
            continue
        if any(name != outer and lies_in(name, outer) for outer in lists):
            continue
        children = [join(name, child) for child, layer in module.named_children() if has_parameters(layer)]
        if len(children) - _ends_in_head(root, name, children, ignored) >= least:
            lists[name] = children
    return lists


def find_head_after(
    root: nn.Module, blocks: Sequence[str], network: str | None, ignored: Sequence[str]
) -> tuple[str, ...]:
    """Finds a head that lies outside of what holds the blocks: the last module registered after them.

    Args:
        root: The module.
        blocks: The blocks' paths.
        network: The path of a recognised model without a head; None if there is none.
        ignored: Paths that are no part of the network (metrics).

    Raises:
        LayersError: There is none.
    """
    last = blocks[-1] if network is None else network
    after = _parametrised_after(root, last, ignored)
    after = [name for name in after if not any(lies_in(block, name) or lies_in(name, block) for block in blocks)]
    linear = [name for name in after if any(isinstance(m, nn.Linear) for m in root.get_submodule(name).modules())]
    if linear:
        return (linear[-1],)
    if after:
        return (after[-1],)
    children = [name for name, child in root.named_children() if has_parameters(child)]
    raise LayersError(
        f"No head was found in {type(root).__name__} after {last or 'the model itself'}: its parts with parameters are "
        f"{', '.join(children) or 'none'}. Expected a module after the blocks that makes the prediction. Name it: "
        "head='...'."
    )


def _ends_in_head(root: nn.Module, name: str, children: Sequence[str], ignored: Sequence[str]) -> bool:
    """Says whether the last layer of a Sequential is the head: linear, and nothing comes after it."""
    if not isinstance(root.get_submodule(name), nn.Sequential):
        return False
    if not children or not isinstance(root.get_submodule(children[-1]), nn.Linear):
        return False
    return not _parametrised_after(root, name, ignored)


def _parametrised_after(root: nn.Module, path: str, ignored: Sequence[str]) -> list[str]:
    """Returns the modules that are registered after a path, beside it or beside what holds it."""
    found: list[str] = []
    parts = path.split(".") if path else []
    for depth in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:depth])
        names = [name for name, child in root.get_submodule(parent).named_children() if has_parameters(child)]
        if parts[depth] in names:
            found += [join(parent, name) for name in names[names.index(parts[depth]) + 1 :]]
    # a module may be registered twice: the first path is its name
    unique = {id(root.get_submodule(name)): name for name in reversed(found)}
    return [
        name for name in found if name in unique.values() and not any(lies_in(name, skipped) for skipped in ignored)
    ]
