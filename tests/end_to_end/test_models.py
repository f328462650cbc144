"""Models of the ecosystem, through the whole course: fit, serve, forget, fit again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_s3t import EnsembleModule
from lightning_s3t.store import Store
from tests.end_to_end.tiny_models import LORA, TINY, Rows
from tests.people import ARGUMENTS, Classifier, People, assert_bitwise_equal, fit, make_trainer, tensors_of
from tests.tiers import nightly_except


class ImageClassifier(pl.LightningModule):
    """A timm model that answers with a tensor."""

    inputs = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=2, **arguments)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["inputs"]), batch["labels"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.model(batch["inputs"]).argmax(-1) == batch["labels"]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class TextClassifier(pl.LightningModule):
    """A transformers model that answers with a ModelOutput."""

    inputs = torch.randint(3, 60, (60, 6), generator=torch.Generator().manual_seed(0))

    def __init__(self, config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = transformers.AutoModelForSequenceClassification.from_config(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.bert(input_ids=batch["inputs"], labels=batch["labels"]).loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        output = self.bert(input_ids=batch["inputs"], labels=batch["labels"])
        self.log_dict({"loss": output.loss, "accuracy": (output.logits.argmax(-1) == batch["labels"]).float().mean()})

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class T5Classifier(TextClassifier):
    """An encoder without a head, and a head of one's own."""

    def __init__(self, config: Any) -> None:
        pl.LightningModule.__init__(self)
        torch.manual_seed(0)
        self.encoder = transformers.T5EncoderModel(config)
        self.head = nn.Linear(config.d_model, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids=inputs).last_hidden_state.mean(1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["inputs"]), batch["labels"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch["inputs"]).argmax(-1) == batch["labels"]).float().mean())


class LanguageModel(TextClassifier):
    """Learns what comes next."""

    def __init__(self, config: Any) -> None:
        pl.LightningModule.__init__(self)
        torch.manual_seed(0)
        self.model = transformers.AutoModelForCausalLM.from_config(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(input_ids=batch["inputs"], labels=batch["inputs"]).loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.model(input_ids=batch["inputs"]).logits
        self.log("accuracy", (logits[:, :-1].argmax(-1) == batch["inputs"][:, 1:]).float().mean())


GPT2 = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 60, "n_positions": 8, "pad_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "vocab_size": 60}

MODULES: dict[str, tuple[Any, Any]] = {
    "timm vit": (lambda: ImageClassifier("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=24), LORA),
    "timm resnet with batchnorm": (lambda: ImageClassifier("test_resnet"), LORA),
    "timm resnet, whole layers": (lambda: ImageClassifier("test_resnet"), None),
    "bert": (lambda: TextClassifier(transformers.BertConfig(**TINY)), LORA),
    "deberta-v2": (lambda: TextClassifier(transformers.DebertaV2Config(**TINY)), LORA),
    "t5 encoder": (lambda: T5Classifier(transformers.T5Config(**T5)), LORA),
    "gpt2 causal lm": (lambda: LanguageModel(transformers.GPT2Config(**GPT2)), LORA),
    "llama": (lambda: TextClassifier(transformers.LlamaConfig(**TINY)), LORA),
}


@pytest.mark.parametrize("name", nightly_except(MODULES, "timm resnet with batchnorm"))
def test_non_interference_serving_and_rebuild(tmp_path: Path, name: str) -> None:
    make, adapter = MODULES[name]
    person = "user-3"

    def fit(store: Path, noisy: str | None = None) -> None:
        module = make()
        loader = DataLoader(Rows(module.inputs, noisy), 4, shuffle=True, drop_last=True)
        make_trainer(store, epochs=1, adapter=adapter).fit(module, train_dataloaders=loader)

    fit(tmp_path / "a")
    fit(tmp_path / "b", noisy=person)
    for store in (tmp_path / "a", tmp_path / "b"):
        with Store.open(store) as opened:
            opened.forget([person])
    assert_bitwise_equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))

    served = EnsembleModule.from_store(tmp_path / "a", make())
    assert len(served.survivors) == 2
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    results = trainer.test(served, DataLoader(Rows(served.inputs), 20), verbose=False)
    assert 0 <= results[0]["accuracy"] <= 1

    fit(tmp_path / "a")
    assert len(tensors_of(tmp_path / "a")) == 8


class Normalised(Classifier):
    """With weights that are computed at each use."""

    def __init__(self, normalise: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(12)
            for block in self.network.blocks:
                normalise(block.linear)


NORMALISED: dict[str, Any] = {
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.parametrize("adapter", nightly_except([ARGUMENTS["adapter"], None], ARGUMENTS["adapter"]))
@pytest.mark.parametrize("kind", nightly_except(NORMALISED, "spectral_norm"))
@torch.no_grad()
def test_normalised_weights_are_free_of_a_forgotten_person_to_the_last_bit(
    tmp_path: Path, kind: str, adapter: Any
) -> None:
    left, people = [], People.make()
    for name, rows in (("a", people), ("b", people.replaced("user-3"))):
        fit(tmp_path / name, rows, module=Normalised(NORMALISED[kind]), adapter=adapter, epochs=1)
        served = EnsembleModule.from_store(tmp_path / name, Normalised(NORMALISED[kind]))
        served.forget(["user-3"])
        left.append((tensors_of(tmp_path / name), served(people.features)))
    assert_bitwise_equal(left[0][0], left[1][0])
    assert torch.equal(left[0][1], left[1][1])
