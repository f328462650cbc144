"""Networks of transformers, timm, torchvision and PEFT, and forms of networks that people write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import torchvision
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_s3t import EnsembleModule
from tests.ecosystem.cases import Samples, Script, Variant, behaves, exact, loader, refused
from tests.ecosystem.story import fit

LIBRARIES = ("lightning", "torch", "transformers", "timm", "torchvision", "peft")
TINY = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(rows: int = 60, length: int = 8) -> list[tuple[Tensor, int]]:
    drawn = torch.randint(1, 90, (rows, length), generator=generator())
    return [(row, int(row[0]) % 3) for row in drawn]


def pictures(rows: int = 60, size: int = 32, channels: int = 3) -> list[tuple[Tensor, int]]:
    drawn = torch.randn(rows, channels, size, size, generator=generator())
    return [(row, int(row.mean() > 0)) for row in drawn]


def vectors(rows: int = 60, width: int = 8) -> list[tuple[Tensor, int]]:
    drawn = torch.randn(rows, width, generator=generator())
    return [(row, int(row.sum() > 0)) for row in drawn]


class Lit(pl.LightningModule):
    """A classifier around a network."""

    def __init__(self, net: nn.Module, rate: float = 1e-2) -> None:
        super().__init__()
        self.net = net
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(x)
        return getattr(answer, "logits", answer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], self.rate)


class LanguageModel(Lit):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(input_ids=batch[0], labels=batch[0]).loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.net(input_ids=batch[0], labels=batch[0]).loss)


class Seq2Seq(LanguageModel):
    pass


def script(variant: Variant, module: pl.LightningModule, samples: list[Any], **s3t: Any) -> Script:
    rows = variant.samples(samples)
    return Script(module, loader(rows), loader(Samples(samples, [""] * len(samples)), shuffle=False), s3t=s3t)


def add(name: str, make: Any, samples: Any, needed: str = "", kind: type[Lit] = Lit, **s3t: Any) -> None:
    exact(name, needed)(lambda variant: script(variant, kind(make()), samples(), **s3t))


def bert(**arguments: Any) -> Any:
    return BertForSequenceClassification(BertConfig(vocab_size=90, num_labels=3, **{**TINY, **arguments}))


def gpt2(**arguments: Any) -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=90, n_layer=4, n_embd=16, n_head=2, n_positions=32, **arguments))


def checkpointed() -> Any:
    model = gpt2()
    model.gradient_checkpointing_enable()
    return model


add("transformers BERT classifier", bert, tokens)
add(
    "transformers DistilBERT classifier",
    lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=90, n_layers=4, dim=16, n_heads=2, hidden_dim=32, num_labels=3)
    ),
    tokens,
)
add(
    "transformers ViT",
    lambda: ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=2, **TINY)),
    pictures,
)
add("transformers GPT-2, tied head", gpt2, tokens, kind=LanguageModel)
add("transformers GPT-2, gradient_checkpointing_enable()", checkpointed, tokens, kind=LanguageModel)
add("transformers LLaMA", lambda: LlamaForCausalLM(LlamaConfig(vocab_size=90, **TINY)), tokens, kind=LanguageModel)
add(
    "transformers T5",
    lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=90, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
            decoder_start_token_id=0,
        )
    ),
    tokens,
    "layers, head",
    kind=Seq2Seq,
    layers="net.decoder.block",
    head="net.lm_head",
)  # fmt: skip
for name in ("test_vit", "test_resnet", "test_convnext", "test_efficientnet"):  # timm's own, for tests
    add(f"timm {name}", lambda n=name: timm.create_model(n, num_classes=2), lambda: pictures(24, 160))
add("torchvision resnet18", lambda: torchvision.models.resnet18(num_classes=2), lambda: pictures(24))


def peft_model(**arguments: Any) -> Any:
    return get_peft_model(bert(), LoraConfig(r=2, target_modules=["query", "value"], **arguments))


add("a PEFT model (get_peft_model)", lambda: peft_model(task_type="SEQ_CLS"), tokens, "adapter=None", adapter=None)
refused(
    "a PEFT model, S3T's own adapter on top",
    "AdapterError|UnsupportedError|ConfigurationError",
    "adapter=None",
    "pass the plain model and the adapter's config, or adapter=None",
)(lambda v: script(v, Lit(peft_model(task_type="SEQ_CLS")), tokens()))
refused(
    "a PEFT model without task_type (its head is frozen)",
    "LayersError",
    "no trainable parameter",
    "the head has to be trainable",
)(lambda v: script(v, Lit(peft_model()), tokens(), adapter=None))


class Cnn(nn.Module):
    """PyTorch's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1)))))
        return self.fc3(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(90, 8)
        self.first = nn.LSTM(8, 16, batch_first=True)
        self.second = nn.GRU(16, 16, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(self.embedding(x))[0])[0][:, -1])


class Double(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(taken, given, 3, padding=1),
            nn.BatchNorm2d(given),
            nn.ReLU(),
            nn.Conv2d(given, given, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.double_conv(x))


class Up(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(taken, taken // 2, 2, stride=2)
        self.conv = Double(taken, given)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc = Double(3, 8)
        self.down1 = Double(8, 16)
        self.down2 = Double(16, 32)
        self.up1 = Up(32, 16)
        self.up2 = Up(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inc(x)
        second = self.down1(nn.functional.max_pool2d(first, 2))
        x = self.down2(nn.functional.max_pool2d(second, 2))
        return self.outc(self.up2(self.up1(x, second), first)).mean((2, 3))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(90, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


add("a tutorial's CNN (conv1, conv2, fc1, ...)", Cnn, lambda: pictures(40))
add("recurrent layers (LSTM, GRU)", Recurrent, tokens, "adapter=None", adapter=None)
add("a U-Net written by hand", UNet, lambda: pictures(40, 16))
add("nn.TransformerEncoder", Encoder, tokens)


def mlp(width: int = 8, classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))


class Detector(Lit):
    """Answers with as many boxes as it likes."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Boxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        return logits if self.training else [{"boxes": row[row > 0]} for row in logits]


@exact("answers without a mean (boxes)", "aggregate='single'")
def boxes(variant: Variant) -> Script:
    rows = vectors()
    return Script(
        Detector(Boxes()),
        loader(variant.samples(rows)),
        answer=lambda served: served(torch.stack([row for row, _ in rows])),
        serving={"aggregate": "single"},
    )


class Gan(pl.LightningModule):
    """Lightning's GAN, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, (first, second) = batch[0], self.optimizers()
        z = torch.randn(len(real), 4)
        loss = nn.functional.softplus(-self.discriminator(self(z))).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        fake = self(z).detach()
        loss = (
            nn.functional.softplus(-self.discriminator(real)) + nn.functional.softplus(self.discriminator(fake))
        ).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters()), torch.optim.Adam(self.discriminator.parameters())


@exact("a GAN with two optimizers", "layers, head, aggregate='single'")
def gan(variant: Variant) -> Script:
    s3t = {"layers": ["generator.0", "generator.2"], "head": ["generator.4", "discriminator"]}
    answer = lambda served: served(torch.randn(4, 4))  # noqa: E731
    return Script(Gan(), loader(variant.samples(vectors())), s3t=s3t, answer=answer, serving={"aggregate": "single"})


refused(
    "a GAN, as it is", "LayersError", r"layers='generator'", "two networks are not guessed; what to paste is proposed"
)(lambda v: Script(Gan(), loader(v.samples(vectors()))))


class Autoencoder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[0])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


@exact("an autoencoder of two Sequentials", "layers, head")
def autoencoder(variant: Variant) -> Script:
    return script(variant, Autoencoder(), vectors(), layers=["encoder.0", "encoder.2", "decoder.0"], head="decoder.2")


class Spectral(Lit):
    def __init__(self) -> None:
        super().__init__(mlp())
        nn.utils.parametrizations.spectral_norm(self.net[2])


refused(
    "spectral_norm", "AdapterError|UnsupportedError", "power iteration|spectral", "it writes to itself in each pass"
)(lambda v: script(v, Spectral(), vectors()))


class Hooked(Lit):
    """Keeps an activation on itself, by a hook from __init__."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.net[1].register_forward_hook(self.keep)
        self.kept: list[Any] = []

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept = [output.detach().mean()]


@behaves("a forward hook that writes to self")
def hooked(folder: Path) -> None:
    made = fit(folder / "store", lambda v: script(v, Hooked(), vectors()))
    with EnsembleModule.from_store(folder / "store", made.module) as served, torch.no_grad():
        served(torch.randn(4, 8))
    assert made.module.kept == []


@behaves("to_torchscript(method='trace') of the served module", reason="a trace would answer for ever: export instead")
def traced(folder: Path) -> None:
    made = fit(folder / "store", lambda v: script(v, Lit(mlp()), vectors()))
    from lightning_s3t.errors import S3TError

    with EnsembleModule.from_store(folder / "store", made.module) as served, pytest.raises(S3TError):
        served.to_torchscript(method="trace", example_inputs=torch.randn(4, 8))


class Rows(Dataset[Any]):
    def __init__(self, data: Samples) -> None:
        self.data = data
        self.names = data.owners

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        return self.data[row]


class Asking(Lit):
    def on_train_start(self) -> None:
        assert self.trainer.train_dataloader.dataset.names


@exact("a hook that reads an attribute of the train data set")
def asking(variant: Variant) -> Script:
    rows = Rows(variant.samples(vectors()))
    return Script(Asking(mlp()), loader(rows), loader(rows, shuffle=False), s3t={"subjects": "names"})


@exact("ConcatDataset, with subjects by an attribute of its parts")
def concatenated(variant: Variant) -> Script:
    rows = variant.samples(vectors())
    half = len(rows) // 2
    parts = [Samples(rows.samples[:half], rows.owners[:half]), Samples(rows.samples[half:], rows.owners[half:])]
    return Script(Lit(mlp()), loader(torch.utils.data.ConcatDataset(parts)), loader(rows, shuffle=False))
