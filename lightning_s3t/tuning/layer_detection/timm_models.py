"""timm: models describe their own blocks (`group_matcher`) and head (`get_classifier`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lightning_s3t.tuning.layer_detection.blocks import Block, Blocks, tidy
from lightning_s3t.tuning.layer_detection.detected import DetectedLayers
from lightning_s3t.tuning.layer_detection.modules import count_layers, expand, is_from
from lightning_s3t.tuning.layer_detection.paths import has_parameters, join, lies_in
from lightning_s3t.tuning.layer_detection.stacks import find_stacks, longest, without_ends

_AFTER = 3


def is_timm_model(module: nn.Module) -> bool:
    """Return whether a module describes itself as timm's models do.

    It checks the class, since wrappers (PEFT's, torch.compile's) forward the attributes of their inner module.

    Args:
        module: Any module.
    """
    kind = type(module)
    described = callable(getattr(kind, "group_matcher", None)) or is_from(module, "timm.models")
    return described and callable(getattr(kind, "get_classifier", None))


def find_in_timm_model(model: nn.Module, path: str, slices: int) -> DetectedLayers | None:
    """Find the blocks that a timm model describes; its coarse blocks (stages) if it has no finer ones.

    Args:
        model: The model.
        path: Its path.
        slices: The wanted number of blocks.

    Returns:
        The detected layers; None if the description gives no blocks.
    """
    heads = timm_heads(model)
    blocks: Blocks = ()
    source = "timm group_matcher"
    if callable(getattr(model, "group_matcher", None)):
        blocks = _described(model, False, heads)
        if len(blocks) < 2:
            blocks = _described(model, True, heads)
    if len(blocks) < 2:  # some families do not have a description
        stacks = without_ends(find_stacks(model, "", heads, slices))
        chosen = longest(stacks, lambda stack: len(stack.blocks), share=0.5) if stacks else []
        if len(chosen) != 1:
            return None
        blocks, source = chosen[0].blocks, f"timm {chosen[0]}"
    found = [tuple(join(path, name) for name in block) for block in blocks]
    return DetectedLayers(path, found, tuple(join(path, head) for head in heads), source)


def timm_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of a model's classifiers; none if it was made with `num_classes=0`.

    Args:
        model: The model.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    modules = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    wanted = {id(module) for module in modules if isinstance(module, nn.Module) and has_parameters(module)}
    return expand(model, [name for name, module in model.named_modules() if id(module) in wanted])


def _described(model: nn.Module, coarse: bool, heads: tuple[str, ...]) -> Blocks:
    from timm.models import group_parameters

    matcher: Any = model.group_matcher(coarse=coarse)  # type: ignore[operator]
    groups: Mapping[str, int] = group_parameters(model, matcher, reverse=True)
    numbered = _numbered(groups, matcher) if isinstance(matcher, Mapping) else None
    of_blocks = {groups[name] for name in numbered or ()}
    first = next(iter(groups.values()), 0)
    members: dict[int, list[str]] = {}
    for position, (name, group) in enumerate(_whole_modules(model, "", groups)):
        if any(lies_in(name, head) or lies_in(head, name) for head in heads):
            continue
        if numbered is not None:
            if group in of_blocks:
                members.setdefault(group, []).append(name)
        elif group != first and re.search(r"\d", name):
            # a description that is a function may put blocks that run one after another into one group (CaiT's)
            members[position] = [name]
    blocks: list[Block] = []
    for group in sorted(members):
        places = {name: _place_of(name, numbered) for name in members[group]}
        extra = [name for name in members[group] if places[name] == _AFTER]
        if not any(count_layers(model.get_submodule(name)) for name in extra):
            members[group] = [name for name in members[group] if name not in extra]
        blocks.append(tuple(sorted(members[group], key=lambda name: places[name])))
    return tidy(model, blocks)


def _numbered(groups: Mapping[str, int], matcher: Mapping[str, Any]) -> dict[str, int]:
    """Return the parameters that belong to blocks, and their order within the block.

    Blocks are matched by a number. A pattern without a number is a stem, a last normalisation or a last convolution,
    although timm may put it into the last block's group; modules that no pattern matches come after the blocks. The
    second entry of a timm pattern marks modules before the rest of their block ((0,), a downsampling) or after it
    ((99999,), a transition).
    """
    patterns: list[tuple[re.Pattern[str], int | None]] = []
    for key, entry in matcher.items():
        for pattern, suffix in entry if isinstance(entry, (list, tuple)) else [(entry, None)]:
            if pattern is not None:
                compiled = re.compile(pattern)
                patterns.append((compiled, _place(suffix) if key != "stem" and compiled.groups else None))
    found: dict[str, int] = {}
    for name in groups:
        place = next((place for pattern, place in patterns if pattern.match(name)), None)
        if place is not None:
            found[name] = place
    return found


def _place(suffix: tuple[int, ...] | None) -> int:
    if suffix is None:
        return 1
    return 0 if suffix == (0,) else 2


def _place_of(name: str, numbered: Mapping[str, int] | None) -> int:
    """Return the position of a module within its block; modules without a number come last."""
    if numbered is None:
        return 0
    return min((place for parameter, place in numbered.items() if lies_in(parameter, name)), default=_AFTER)


def _whole_modules(module: nn.Module, path: str, groups: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the largest modules whose parameters all belong to one group."""
    inside = {groups[name] for name in groups if lies_in(name, path)}
    if path and len(inside) == 1:
        yield path, inside.pop()
        return
    for name, child in module.named_children():
        if has_parameters(child):
            yield from _whole_modules(child, join(path, name), groups)
