"""Language models that are taught to answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_s3t.zoo.models import CausalLM
from tests.zoo.models.trainers import make_trainer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 12,
}


def counting(count: int = 32) -> DataLoader[dict[str, torch.Tensor]]:
    """Each token is the one before it and one more."""
    tokens = (torch.arange(count)[:, None] + torch.arange(8)) % 12
    mask = torch.ones(8, dtype=torch.long)
    return DataLoader([{"input_ids": ids, "attention_mask": mask, "labels": ids} for ids in tokens], batch_size=8)  # type: ignore[arg-type]


def make() -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(config=LLAMA, learning_rate=1e-2)


def test_it_learns_to_count() -> None:
    module, trainer = make(), make_trainer(epochs=15)
    trainer.fit(module, counting(), counting())
    assert trainer.callback_metrics["val/perplexity"] < 1.5
    with torch.no_grad():
        next_token = module.eval()({"input_ids": torch.tensor([[3, 4, 5]])})[0, -1].argmax()
    assert next_token == 6


def test_an_untrained_model_is_as_perplexed_as_its_loss_says() -> None:
    found = make_trainer().test(make(), counting(), verbose=False)[0]
    assert found["test/perplexity"] == pytest.approx(math.exp(found["test/loss"]), rel=1e-4)
    assert found["test/perplexity"] > 6


def test_what_is_labelled_minus_100_is_not_learnt() -> None:
    batch = next(iter(counting()))
    module = make().eval()
    masked = batch["labels"].clone()
    masked[:, :5] = -100
    module.requires_grad_(False)
    logits = module(batch)
    by_hand = torch.nn.functional.cross_entropy(logits[:, 4:7].flatten(0, 1), batch["labels"][:, 5:].flatten())
    assert module.training_step({**batch, "labels": masked}, 0) == pytest.approx(by_hand.item(), rel=1e-5)
