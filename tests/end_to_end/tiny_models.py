"""What tests of models of the ecosystem share: rows, sizes and an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Rows(Dataset[Any]):
    """Rows of any kind, owned by people."""

    def __init__(self, inputs: Tensor, noisy: str | None = None) -> None:
        self.inputs = inputs
        self.owners = [f"user-{row % 20}" for row in range(len(inputs))]
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        wrong = self.owners[row] == self.noisy
        return {"inputs": self.inputs[0] if wrong else self.inputs[row], "labels": torch.tensor((row + wrong) % 2)}


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "pad_token_id": 0,
}


LORA = {"peft_type": "LORA", "r": 2, "lora_dropout": 0.1}
