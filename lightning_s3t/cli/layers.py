"""The verb `layers`: what S3T finds in a model, before any training."""

from __future__ import annotations

from lightning_s3t.cli.models import make_model


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
    found = describe_layers(make_model(model), slices, named, head, adapter)
    Console().print(layer_table(found, title=escape(model)))
