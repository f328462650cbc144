"""timm: models describe their own blocks (`group_matcher`) and head (`get_classifier`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lightning_s3t.tuning.finders.found import Found
from lightning_s3t.tuning.finders.paths import has_parameters, join, lies_in


def is_timm_model(module: nn.Module) -> bool:
    """Says whether a module describes itself as timm's models do.

    Args:
        module: Any module.
    """
    return callable(getattr(module, "group_matcher", None)) and callable(getattr(module, "get_classifier", None))


def find_in_timm_model(model: nn.Module, path: str) -> Found | None:
    """Finds the blocks that a timm model describes; its coarse blocks (stages) if it has no finer ones.

    Args:
        model: The model.
        path: Where it is.

    Returns:
        What was found; None if the description leads to no blocks.
    """
    from timm.models import group_parameters

    heads = _heads(model)
    for coarse in (False, True):
        matcher: Any = model.group_matcher(coarse=coarse)  # type: ignore[operator]
        groups: Mapping[str, int] = group_parameters(model, matcher, reverse=True)
        left_out = _left_out(groups, matcher, heads)
        blocks: dict[int, list[str]] = {}
        for name, group in _whole_modules(model, "", groups):
            if group not in left_out and not any(lies_in(name, head) or lies_in(head, name) for head in heads):
                blocks.setdefault(group, []).append(join(path, name))
        if len(blocks) > 1:
            ordered = [tuple(blocks[group]) for group in sorted(blocks)]
            return Found(path, ordered, tuple(join(path, head) for head in heads), "timm group_matcher")
    return None


def _heads(model: nn.Module) -> tuple[str, ...]:
    classifier = model.get_classifier()  # type: ignore[operator]
    modules = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    wanted = {id(module) for module in modules if isinstance(module, nn.Module) and has_parameters(module)}
    return tuple(name for name, module in model.named_modules() if id(module) in wanted)


def _left_out(groups: Mapping[str, int], matcher: Any, heads: tuple[str, ...]) -> set[int]:
    """Returns the groups that are no blocks: the stem and the head."""
    stem = re.compile(matcher["stem"]) if isinstance(matcher, Mapping) and "stem" in matcher else None
    found = set()
    for name, group in groups.items():
        if any(lies_in(name, head) for head in heads) or (stem is not None and stem.match(name)):
            found.add(group)
    return found


def _whole_modules(module: nn.Module, path: str, groups: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yields the largest modules whose parameters all belong to one group."""
    inside = {groups[name] for name in groups if lies_in(name, path)}
    if path and len(inside) == 1:
        yield path, inside.pop()
        return
    for name, child in module.named_children():
        if has_parameters(child):
            yield from _whole_modules(child, join(path, name), groups)
