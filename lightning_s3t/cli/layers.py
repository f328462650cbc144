"""The command `layers`: the layers that S3T finds in a model, before any training."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict

from lightning_s3t.cli.models import make_model


def layers(
    model: str,
    slices: int,
    /,
    *,
    layers: list[str] | None = None,
    head: list[str] | None = None,
    rank: int = 16,
    whole_layers: bool = False,
    json: bool = False,
) -> None:
    """Show the layer groups and the head that S3T finds in a model, and what each stage would train.

    Args:
        model: A timm model's name (vit_base_patch16_224); the name of a transformers model on the hub
            (distilbert/distilbert-base-uncased), or its folder; or the import path of a class or function that returns
            a module (my_app.models:LitClassifier).
        slices: Number of slices, and of layer groups.
        layers: Paths of the blocks in forward order, or of the one list that holds them, if they are not found
            automatically.
        head: Paths of the head, if it is not found automatically.
        rank: Rank of the LoRA adapters.
        whole_layers: Fine-tune whole layers, without adapters, as S3T(adapter=None) does.
        json: Print a JSON document, with the path of every block.
    """
    from lightning_s3t.tuning import DEFAULT_ADAPTER, describe_layers

    named = layers[0] if layers is not None and len(layers) == 1 else layers
    adapter = None if whole_layers else {**DEFAULT_ADAPTER, "r": rank}
    found = describe_layers(make_model(model), slices, named, head, adapter)
    print(json_format.dumps(asdict(found), indent=2) if json else found)
