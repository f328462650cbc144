"""The verb `layers`: what S3T finds in a model, before any training."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from lightning_s3t.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn


def layers(
    model: str,
    slices: int,
    layers: list[str] | None = None,
    head: list[str] | None = None,
    rank: int = 16,
    whole_layers: bool = False,
) -> None:
    """Show the layer groups and the head that are found in a model, and what each stage would train.

    Args:
        model: A timm model's name (vit_base_patch16_224), or the import path of something that gives a module when it
            is called (my_app.models:LitClassifier).
        slices: Number of slices, and of layer groups.
        layers: Paths of the blocks in forward order, or of the one list that holds them, if they cannot be found.
        head: Paths of the head, if it cannot be found.
        rank: Rank of the LoRA adapters.
        whole_layers: Fine-tune whole layers, without adapters.
    """
    from rich.console import Console
    from rich.markup import escape

    from lightning_s3t.tables import layer_table
    from lightning_s3t.tuning import DEFAULT_ADAPTER, describe_layers

    named = layers[0] if layers is not None and len(layers) == 1 else layers
    adapter = None if whole_layers else {**DEFAULT_ADAPTER, "r": rank}
    found = describe_layers(_make(model), slices, named, head, adapter)
    Console().print(layer_table(found, title=escape(model)))


def _make(model: str) -> nn.Module:
    if ":" in model:
        module, _, name = model.partition(":")
        if "" not in sys.path:  # a console script has its own folder on the path, not the one that it is run in
            sys.path.insert(0, "")
        try:
            made: object = getattr(importlib.import_module(module), name)()
        except (ImportError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                f"{model} cannot be made: {error}. Expected the import path of something that gives a module when it "
                "is called without arguments, for example my_app.models:LitClassifier."
            ) from error
        return _checked(made, model)
    import timm

    if not timm.is_model(model):
        close = ", ".join(timm.list_models(f"*{model}*")[:3]) or "see timm.list_models()"
        raise ConfigurationError(
            f"timm has no model {model!r}. Close ones: {close}. For a module of your own give its import path, "
            "my_app.models:LitClassifier."
        )
    return timm.create_model(model, pretrained=False, num_classes=10)


def _checked(made: object, model: str) -> nn.Module:
    from torch import nn

    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"{model} gives a {type(made).__name__}. Expected something that gives a torch.nn.Module when it is called "
            "without arguments, for example my_app.models:LitClassifier."
        )
    return made
