"""The config that a store was trained with, for the command."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_s3t.cli.imports import check_not_on_path
from lightning_s3t.errors import ConfigurationError, StoreError

TRUST = "--trust-config"
_SHOWN = 20  # names in a message
_PATH = r"\b[^\W\d]\w*(?:[.:][^\W\d]\w*)+|(?<=class_path: )\w+"
SHARED = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "s3t")


def stored_config(store: Path, name_classes: Collection[str] = ("model", "data"), trust_config: bool = False) -> str:
    """Return the LightningCLI config that a store was trained with, in YAML, once it is known that it may be run.

    A config is code: it names classes and functions, and their arguments. So it may be run if this user has trained
    with it, or says so, here or before.

    A callback among the trainer's callbacks is moved to the section `s3t`. Classes that the app fixes, and that the
    config therefore does not name, are added.

    Args:
        store: The store's folder.
        name_classes: The sections to name the classes in: "model", "data".
        trust_config: Whether it may be run, regardless of who trained with it.

    Raises:
        StoreError: The store does not exist, or was not trained from a LightningCLI.
        ConfigurationError: It was not said that it may be run; or Python looks for modules in the store.
    """
    import yaml

    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        options = opened.options
    text = options.get("config")
    if text is None:
        raise StoreError(
            f"The store {store} has no config: it was not trained from a LightningCLI. Pass the config yourself: "
            "--config config.yaml."
        )
    check_not_on_path(store)
    config = _parse(store, text)
    _check_trusted(store, options, config, trust_config)
    config = {name: value for name, value in config.items() if name in SHARED}
    for section, path in options.get("classes", {}).items():
        kept = config.get(section) or {}
        if section in name_classes and "class_path" not in kept:
            config[section] = {"class_path": path, "init_args": kept}
    callbacks = config.get("trainer", {}).get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if str(callback.get("class_path", "")).startswith("lightning_s3t.") and callback["class_path"].endswith(".S3T"):
            config["s3t"] = callback.get("init_args", {})
            config["trainer"]["callbacks"] = [other for other in callbacks if other is not callback]
    # the folder may have been moved since
    config.setdefault("s3t", {})["store"] = str(store)
    return yaml.safe_dump(config, sort_keys=False)


def _parse(store: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
        yaml.safe_dump(found)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise _no_config(store, error) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _no_config(store, "expected sections")
    return found


def _no_config(store: Path, why: object) -> StoreError:
    return StoreError(
        f"The config in the store {store} is not a LightningCLI config ({why}). Nothing was imported. Pass the config "
        "yourself: --config config.yaml."
    )


def _check_trusted(store: Path, options: Mapping[str, Any], config: Mapping[str, Any], trust_config: bool) -> None:
    from lightning_s3t.store.keys.trusted_configs import is_trusted, trust

    if is_trusted(options):
        return
    names = _names([config, options.get("classes")])
    what = (
        f"You have not used the config in the store {store} on this machine before. Running it imports and calls what "
        f"it names: {', '.join(names[:_SHOWN]) or 'lightning_s3t alone'}{', ...' if len(names) > _SHOWN else ''}."
    )
    if not trust_config and not _says_yes(f"{what}\nDo you trust whoever made this store? [y/N] "):
        raise ConfigurationError(
            f"{what} Nothing was imported. If you trust whoever made the store, pass {TRUST} once; or pass your own "
            "config with --config."
        )
    trust(options)


def _names(config: object) -> list[str]:
    """Return names that look like import paths, as Python reads them: a file may spell a name differently."""
    found = {name for text in _texts(config) for name in re.findall(_PATH, text)}
    return sorted(name for name in found if not name.startswith("lightning_s3t."))


def _texts(config: object) -> Iterator[str]:
    waiting, seen = [config], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, (Mapping, list)) and id(one) not in seen:
            seen.add(id(one))
            parts = [*one.items()] if isinstance(one, Mapping) else one
            for part in parts:
                if isinstance(part, tuple):
                    key, value = part
                    yield f"class_path: {value}" if key == "class_path" and isinstance(value, str) else str(key)
                    waiting.append(value)
                else:
                    waiting.append(part)


def _says_yes(question: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
