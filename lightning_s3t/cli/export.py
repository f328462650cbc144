"""The command `s3t export`: a survivor's weights or adapter, to take away."""

from __future__ import annotations

import json as json_format
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_s3t.cli.models import import_model

if TYPE_CHECKING:
    from torch import nn


def export(
    store: Path,
    path: Path,
    /,
    *,
    model: str | None = None,
    form: Literal["weights", "adapter"] = "weights",
    each_shard: bool = False,
    recipient: list[str] | None = None,
    trust_config: bool = False,
    json: bool = False,
) -> None:
    """Export the best survivor to a file: plain weights, or a PEFT adapter.

    The file is registered in the store: a request that reaches the survivor erases the file and names it in its record.

    Args:
        store: The store's folder. If a LightningCLI trained it, the store remembers the model.
        path: The .safetensors file, for the weights of one survivor; otherwise a folder.
        model: The import path of a class or function that returns the module, with its pretrained weights
            (my_app:LitClassifier).
        form: The whole state dict in the module's own names, with adapters merged; or a PEFT adapter of its network.
        each_shard: Export each shard's survivor.
        recipient: Recipients of the copy: s3t recipients list names them once a request has reached it.
        trust_config: Run the stored config even if you have not trained with it; a config is code.
        json: Print the exported files as a JSON document.
    """
    import lightning.pytorch as pl

    from lightning_s3t import EnsembleModule, EnsemblePredictor

    with redirect_stdout(sys.stderr):  # the app's own output is not part of the answer
        module = _module(store, model, trust_config)
    kind = EnsembleModule if isinstance(module, pl.LightningModule) else EnsemblePredictor
    with kind.from_store(store, module) as served:
        found = served.export(path, form=form, each_shard=each_shard)
        for copy in found:
            for name in recipient or ():
                served.store.hand_over(copy.name, name)
    if json:
        rows = [
            {
                "name": copy.name,
                "unit": str(copy.unit),
                "path": str(copy.path),
                "provenance": str(copy.provenance),
            }
            for copy in found
        ]
        print(json_format.dumps(rows, indent=2))
        return
    for copy in found:
        print(f"{copy.path}: unit {copy.unit}, named {copy.name} in internal records. Made from: {copy.provenance}")
    print("A request that affects it erases this file. Remove any copies of it yourself.")


def _module(store: Path, model: str | None, trust_config: bool) -> nn.Module:
    if model is not None:
        return import_model(model)
    from lightning_s3t.cli.audit import load_app

    return load_app(store, trust_config=trust_config).model
