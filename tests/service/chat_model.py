"""A tiny language model of people's texts, with a tokenizer: made here, so nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader

from tests.end_to_end.tiny_models import LORA, TINY, Rows
from tests.people import make_trainer

WORDS = ["<pad>", "<end>", "<unknown>", *(f"w{number}" for number in range(3, 60))]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class LanguageModel(pl.LightningModule):
    """A transformers language model, as people wrap them."""

    inputs = torch.randint(3, 60, (40, 6), generator=torch.Generator().manual_seed(0))

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.LlamaConfig(**TINY, eos_token_id=None, max_position_embeddings=2000)
            self.network = transformers.AutoModelForCausalLM.from_config(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.network(input_ids=batch["inputs"], labels=batch["inputs"]).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def make_tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        chat_template=TEMPLATE,
    )


def train(store: Path) -> None:
    loader = DataLoader(Rows(LanguageModel.inputs), 4, shuffle=True, drop_last=True)
    make_trainer(store, epochs=1, adapter=LORA).fit(LanguageModel(), train_dataloaders=loader)
