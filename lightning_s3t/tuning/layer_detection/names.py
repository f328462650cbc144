"""Hints from the name of a module, or of its class, about its role in a network."""

from __future__ import annotations

import re

_HEAD = frozenset(
    ["head", "heads", "classifier", "classifiers", "fc", "cls", "score", "logits", "regressor"]
) | frozenset(
    ["output", "outputs", "out", "readout", "prediction", "predictions", "predictor", "projection", "projector"]
)
_STEM = frozenset(["stem", "embed", "embeds", "embedding", "embeddings", "embedder", "tokenizer"])
_FRONT_ENDS = frozenset(["feature_extractor", "feature_encoder", "patch_embed"])
_LOSS = frozenset(["loss", "losses", "criterion", "criteria", "criterions", "metric", "metrics"])


def words(name: str) -> list[str]:
    """Split a name into lower-case words, without numbers.

    Args:
        name: A Python name.

    Example:
        >>> words("lm_head2"), words("RobertaClassificationHead")
        (['lm', 'head'], ['roberta', 'classification', 'head'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def names_head(name: str) -> bool:
    """Return whether a name is one that heads have.

    Args:
        name: The last part of a path.

    Example:
        >>> names_head("fc1"), names_head("cls_head"), names_head("blocks")
        (True, True, False)
    """
    return not _HEAD.isdisjoint(words(name))


def names_stem(name: str) -> bool:
    """Return whether a name is one that embeddings and stems have.

    Args:
        name: The last part of a path.

    Example:
        >>> names_stem("patch_embed"), names_stem("stages")
        (True, False)
    """
    return name in _FRONT_ENDS or not _STEM.isdisjoint(words(name))


def names_loss(name: str) -> bool:
    """Return whether a name is one that losses and metrics have: its last word, or the first.

    Args:
        name: The last part of a path, or the name of a class.

    Example:
        >>> names_loss("VGGLoss"), names_loss("val_metrics"), names_loss("lossy")
        (True, True, False)
    """
    found = words(name)
    return bool(found) and (found[-1] in _LOSS or found[0] in _LOSS)


def numbered(name: str) -> str | None:
    """Return the prefix of a name of numbered stages or blocks; None for other names.

    Args:
        name: The last part of a path.

    Example:
        >>> numbered("layer1"), numbered("stage_2"), numbered("critic1")
        ('layer', 'stage', None)
    """
    match = re.fullmatch(r"(layers?|stages?|blocks?|levels?|groups?|res|conv|units?|cells?)_?\d+", name.lower())
    return match.group(1) if match else None
