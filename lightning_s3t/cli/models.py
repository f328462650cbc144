"""Models that a command names: timm's, or those of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_s3t.cli.imports import import_path
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.extras import import_extra

if TYPE_CHECKING:
    from torch import nn


def make_model(model: str, classes: int = 10) -> nn.Module:
    """Makes a model, without pretrained weights.

    Args:
        model: A timm model's name, or the import path of a class or function that returns a module.
        classes: Number of classes of a timm model.

    Raises:
        ConfigurationError: There is none, or it cannot be made.
    """
    if ":" in model:
        make = import_path(model, "a class or function that returns a module, such as my_app.models:LitClassifier")
        try:
            made: object = make()
        except TypeError as error:
            raise ConfigurationError(
                f"{model} cannot be made: {error}. Expected the import path of a class or function that returns a "
                "module and takes no arguments, for example my_app.models:LitClassifier."
            ) from error
        return _checked(made, model)
    timm = import_extra("timm", "Models by their names", "images")

    if not timm.is_model(model):
        close = ", ".join(timm.list_models(f"*{model}*")[:3]) or "see timm.list_models()"
        raise ConfigurationError(
            f"timm has no model {model!r}. Similar names: {close}. For a module of your own give its import path, "
            "my_app.models:LitClassifier."
        )
    return timm.create_model(model, pretrained=False, num_classes=classes)


def _checked(made: object, model: str) -> nn.Module:
    from torch import nn

    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"{model} gives a {type(made).__name__}. Expected a class or function that returns a torch.nn.Module and "
            "takes no arguments, for example my_app.models:LitClassifier."
        )
    return made
