"""Settings of a store, which are compared when it is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_s3t.errors import StoreError, StoreMismatchError
from lightning_s3t.store.ledgers.ledger import Ledger

HINT = "Use the same arguments, model and script as at the first fit, or give a new folder as `store`."

_TENSORS = "model.pretrained."


def normalise(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are after a JSON round trip: tuples as lists, keys as strings.

    Args:
        settings: JSON-ready data.

    Example:
        >>> normalise({"orders": ((0, 1),)})
        {'orders': [[0, 1]]}
    """
    data: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return data


def notes_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a ledger's notes of settings, with their digest.

    Args:
        settings: JSON-ready data.
    """
    text = json.dumps(normalise(settings), sort_keys=True)
    return {"settings": text, "settings_sha256": _digest(text)}


def read_settings(ledger: Ledger, store: Path) -> dict[str, Any]:
    """Read the output of `notes_of`.

    A flipped bit in a seed would move all subjects to other places, and nothing else would detect it.

    Args:
        ledger: The ledger.
        store: The store, for messages.

    Raises:
        StoreError: The settings are missing or corrupted.
    """
    notes = ledger.notes("settings", "settings_sha256")
    text = notes.get("settings")
    if text is None:
        raise StoreError(
            f"The store {store} has no settings: its creation was never finished. Give a new folder as `store`."
        )
    if notes.get("settings_sha256") != _digest(text):
        raise StoreError(
            f"The settings of the store {store} are corrupted: the ledger is damaged. Restore it from a backup."
        )
    settings: dict[str, Any] = json.loads(text)
    return settings


def check_settings(
    kept: Mapping[str, Any], given: Mapping[str, Any], where: str, hint: str = HINT, whole: bool = False
) -> None:
    """Compare the given settings with those of a store.

    Args:
        kept: The store's.
        given: The current settings.
        where: The store, for the message.
        hint: The advice at the end of the message.
        whole: Whether `given` is complete, so that missing settings are differences too.

    Raises:
        StoreMismatchError: Naming every setting that differs, with both values.

    Example:
        >>> check_settings({"seed": 0, "adapter": {"r": 4}}, {"adapter": {"r": 8}}, "runs/s3t", "Use r=4.")
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.StoreMismatchError: The store runs/s3t was made with other settings:
          - adapter.r: store 4, now 8
        Use r=4.
    """
    lines, tensors = [], []
    for name, old, new in _differences(kept, normalise(given), "", whole):
        if name.startswith(_TENSORS):
            tensors.append(name.removeprefix(_TENSORS))
        else:
            lines.append(f"  - {name}: store {_shorten(old)}, now {_shorten(new)}")
    if tensors:
        lines.append(_describe_tensors(tensors, given["model"]["pretrained"]))
    if lines:
        raise StoreMismatchError("\n".join([f"The store {where} was made with other settings:", *lines, hint]))


def _describe_tensors(names: list[str], pretrained: Mapping[str, str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    found = f"  - {len(names)} of {len(pretrained)} pretrained tensors differ from those at the first fit: {shown}."
    alike = pretrained.keys() - set(names)
    if not all(pretrained[name].endswith("constant") for name in alike):
        return found
    return (
        f"{found} Are the weights drawn at random at every start? Load pretrained ones, or seed before the model is "
        "created (L.seed_everything)."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Absent:
    """The value of a missing setting: not equal to any valid value."""


_ABSENT = _Absent()


def _differences(kept: Any, given: Any, path: str, whole: bool) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for key in given:
            yield from _differences(kept.get(key, _ABSENT), given[key], f"{path}.{key}" if path else key, whole)
        for key in sorted(kept.keys() - given.keys()) if whole else ():
            yield f"{path}.{key}" if path else key, kept[key], _ABSENT
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept) and _holds_mappings(given):
        for index, (before, now) in enumerate(zip(kept, given, strict=True)):
            yield from _differences(before, now, f"{path}[{index}]", whole)
    elif kept != given:
        yield path, kept, given


def _holds_mappings(values: list[Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values)


def _shorten(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "class" in part for part in value):
        return f"[{', '.join(str(part['class']) for part in value)}]"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"
