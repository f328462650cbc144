"""Models of transformers: by name or folder with their weights, or drawn from a configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.extras import import_extra


def load_model(auto_class: str, name: str | None, config: dict[str, Any] | None, **arguments: Any) -> nn.Module:
    """Load a pretrained model, or create a random one.

    Args:
        auto_class: The class of transformers, for example "AutoModelForCausalLM".
        name: The model's name on the hub, or its folder.
        config: Instead of a name: a configuration with its `model_type`.
        arguments: More for the configuration.

    Raises:
        ConfigurationError: transformers is not installed, or neither or both of name and config are given.

    Example:
        >>> tiny = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> type(load_model("AutoModelForSequenceClassification", None, tiny, num_labels=3)).__name__
        'BertForSequenceClassification'
        >>> load_model("AutoModelForCausalLM", None, None)
        Traceback (most recent call last):
        ...
        lightning_s3t.errors.ConfigurationError: Expected one of the arguments `name` and `config` but got neither. ...
    """
    if (name is None) == (config is None):
        raise ConfigurationError(
            f"Expected one of the arguments `name` and `config` but got {'neither' if name is None else 'both'}. Give "
            "the name or the folder of a pretrained model, or a config with its `model_type` to draw one at random."
        )
    transformers = import_extra("transformers", "Models of texts", "text")
    auto = getattr(transformers, auto_class)
    if name is not None:
        try:
            model: nn.Module = auto.from_pretrained(name, **arguments)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The model {name!r} was not found on this machine or on the hub ({error}). Expected the name of a "
                "model on the hub, or the folder of one that was saved with save_pretrained."
            ) from error
    else:
        values = dict(config or {})
        if "model_type" not in values:
            raise ConfigurationError(
                f"Expected the argument `config` to name its `model_type` (bert, roberta, llama, ...) but got {values}."
            )
        kind = values.pop("model_type")
        try:
            model = auto.from_config(transformers.AutoConfig.for_model(kind, **{**values, **arguments}))
        except ValueError as error:
            raise ConfigurationError(f"transformers cannot make a model of type {kind!r}: {error}") from error
    return model.train()  # transformers returns them in eval mode, and Lightning trains modules in the mode it finds
