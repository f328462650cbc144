"""Models named on the command line: those of timm and transformers, or of an application."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_s3t.cli.imports import import_path
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.extras import import_extra

if TYPE_CHECKING:
    from torch import nn


def make_model(model: str, classes: int = 10) -> nn.Module:
    """Make a model, without pretrained weights.

    Args:
        model: A timm model's name; the name of a transformers model on the hub (owner/name), or its folder; or the
            import path of a class or function that returns a module.
        classes: Number of classes of a model of timm or transformers.

    Raises:
        ConfigurationError: The model does not exist, or cannot be created.
    """
    if ":" in model:
        return import_model(model)
    if "/" in model or Path(model).is_dir():
        return _transformers_model(model, classes)
    timm = import_extra("timm", "Models by their names", "images")

    if not timm.is_model(model):
        close = timm.list_models(f"*{model}*")[:3]
        similar = f"Similar names: {', '.join(close)}. " if close else "timm.list_models() lists its names. "
        raise ConfigurationError(
            f"timm has no model {model!r}. {similar}For a model of transformers give its name on the hub, with the "
            "owner, or its folder; for a module of your own its import path, my_app.models:LitClassifier."
        )
    return timm.create_model(model, pretrained=False, num_classes=classes)


def import_model(path: str) -> nn.Module:
    """Make a module of an application.

    Args:
        path: The import path of a class or function that returns the module.

    Raises:
        ConfigurationError: The path cannot be imported, or does not return a module.
    """
    make = import_path(path, "a class or function that returns a module, such as my_app.models:LitClassifier")
    try:
        made: object = make()
    except TypeError as error:
        raise ConfigurationError(
            f"{path} cannot be made: {error}. Expected the import path of a class or function that returns a module "
            "and takes no arguments, for example my_app.models:LitClassifier."
        ) from error
    return _checked(made, path)


def _transformers_model(name: str, classes: int) -> nn.Module:
    transformers = import_extra("transformers", "Models by their names", "text")
    try:
        config = transformers.AutoConfig.from_pretrained(name, num_labels=classes)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The model {name!r} was not found on this machine or on the hub ({error}). Expected the name of a model "
            "on the hub, with its owner, or the folder of one that was saved with save_pretrained; or a timm model's "
            "name, or an import path, my_app.models:LitClassifier."
        ) from error
    written = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
    auto = transformers.AutoModelForCausalLM if written else transformers.AutoModelForSequenceClassification
    try:
        made: nn.Module = auto.from_config(config)
    except ValueError as error:
        raise ConfigurationError(
            f"transformers cannot make a classifier of the model {name!r}, of type {config.model_type!r}. Give the "
            "import path of your own module: my_app.models:LitClassifier."
        ) from error
    return made


def _checked(made: object, model: str) -> nn.Module:
    from torch import nn

    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"{model} gives a {type(made).__name__}. Expected a class or function that returns a torch.nn.Module and "
            "takes no arguments, for example my_app.models:LitClassifier."
        )
    return made
