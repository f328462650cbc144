"""Tokenizers of transformers, and batches of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.zoo.extras import import_extra
from lightning_s3t.zoo.models.language_model import IGNORED


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer.

    Args:
        name: The model's name on the hub, or its folder.

    Raises:
        ConfigurationError: transformers is not installed, or the tokenizer does not exist.
    """
    transformers = import_extra("transformers", "Tokenizers", "text")
    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The tokenizer {name!r} was not found on this machine or on the hub ({error}). Expected the name of a "
            "model on the hub, or the folder of a tokenizer that was saved with save_pretrained."
        ) from error


def padding_of(tokenizer: Any) -> int:
    """Return the token for padding rows: its padding token, otherwise its end-of-text token.

    Args:
        tokenizer: A tokenizer of transformers.

    Raises:
        ConfigurationError: It has neither token.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigurationError(
        f"The tokenizer {tokenizer.name_or_path!r} has no token for padding and none for the end of a text. Expected "
        "one of them: set tokenizer.pad_token and save it with save_pretrained."
    )


class PadRows:
    """Makes a batch of rows of tokens: fills them up on the right to the longest.

    Labels that are a number per row are stacked; labels of tokens are filled up with -100.

    Args:
        padding: The token to fill up with.

    Example:
        >>> PadRows(padding=0)([{"input_ids": [5, 6], "labels": 1}, {"input_ids": [7], "labels": 0}])
        {'input_ids': tensor([[5, 6], [7, 0]]), 'labels': tensor([1, 0])}
    """

    def __init__(self, padding: int) -> None:
        self.fillers = {"input_ids": padding, "labels": IGNORED}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch.

        Args:
            rows: Of lists of equal length within a row, or of single numbers.
        """
        return {name: self._column([row[name] for row in rows], self.fillers.get(name, 0)) for name in rows[0]}

    def _column(self, values: list[Any], filler: int) -> Tensor:
        if not isinstance(values[0], list):
            return torch.tensor(values)
        width = max(len(value) for value in values)
        return torch.tensor([value + [filler] * (width - len(value)) for value in values])
