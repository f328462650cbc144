"""The config that a store was trained with, as the command takes it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning_s3t.errors import StoreError

SHARED = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "s3t")


def stored_config(store: Path, name_classes: Collection[str] = ("model", "data")) -> str:
    """Returns the LightningCLI config that a store was trained with, in YAML.

    Where an app has the callback among the trainer's, it is moved to the section `s3t`. Where it fixes its classes, so
    that the config does not name them, they are named.

    Args:
        store: The store's folder.
        name_classes: The sections to name the classes in: "model", "data".

    Raises:
        StoreError: There is no store, or it was not trained from a LightningCLI.
    """
    import yaml

    from lightning_s3t.store import Store

    with Store.open(store) as opened:
        options = opened.options
    text = options.get("config")
    if text is None:
        raise StoreError(
            f"The store {store} remembers no config: it was not trained from a LightningCLI. Give the config yourself: "
            "--config config.yaml."
        )
    config: dict[str, Any] = yaml.safe_load(text)
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
