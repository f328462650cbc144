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
from torchmetrics import Accuracy, F1Score, MetricCollection
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
    get_linear_schedule_with_warmup,
)

from lightning_s3t import EnsembleModule
from tests.ecosystem.cases import Samples, Script, Variant, behaves, exact, loader, refused
from tests.ecosystem.scripts import LanguageModel, Lit, mlp, pictures, script, tokens, vectors
from tests.ecosystem.story import fit

LIBRARIES = ("lightning", "torch", "transformers", "timm", "torchvision", "peft")
TINY = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


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


class FineTuned(Lit):
    """A classifier as the fine-tuning tutorials write it: no decay on norms and biases, a warm-up, several metrics."""

    def __init__(self) -> None:
        super().__init__(bert(), 1e-3)
        scores = {"f1": F1Score("multiclass", num_classes=3), "accuracy": Accuracy("multiclass", num_classes=3)}
        self.metrics = MetricCollection(scores, prefix="test_")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.metrics(self(batch[0]), batch[1])
        self.log_dict(self.metrics)

    def configure_optimizers(self) -> Any:
        plain = [p for name, p in self.named_parameters() if "LayerNorm" in name or name.endswith("bias")]
        known = {id(p) for p in plain}
        decayed = [p for p in self.parameters() if id(p) not in known]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.rate)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_linear_schedule_with_warmup(optimizer, steps // 4, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


exact("transformers BERT classifier, two parameter groups, warm-up, MetricCollection")(
    lambda v: script(v, FineTuned(), tokens())
)


@exact("transformers GPT-2, tied head, generate()")
def generating(variant: Variant) -> Script:
    made = script(variant, LanguageModel(gpt2(eos_token_id=None)), tokens())
    made.test = None
    # the ensemble generates: each shard with a cache of its own
    made.answer = lambda served: served.generate(tokens(2)[0][0][None], max_new_tokens=4, do_sample=False)
    return made


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
add("tied weights (embedding = head)", gpt2, tokens, kind=LanguageModel)
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
    kind=LanguageModel,
    layers="net.decoder.block",
    head="net.lm_head",
)  # fmt: skip
for name in ("test_vit", "test_resnet", "test_convnext", "test_efficientnet"):  # timm's own, for tests
    add(f"timm {name}", lambda n=name: timm.create_model(n, num_classes=2), lambda: pictures(24, 160))
add("torchvision resnet18", lambda: torchvision.models.resnet18(num_classes=2), lambda: pictures(24))


def peft_model(**arguments: Any) -> Any:
    return get_peft_model(bert(), LoraConfig(r=2, target_modules=["query", "value"], **arguments))


add("PEFT model (get_peft_model) with LoRA on q and v", lambda: peft_model(task_type="SEQ_CLS"), tokens)
add("PEFT model, adapter=None", lambda: peft_model(task_type="SEQ_CLS"), tokens, adapter=None)
refused(
    "PEFT model, with an adapter of S3T's as well",
    "AdapterError|UnsupportedError|ConfigurationError",
    "leave `adapter` out",
    "pass the plain model and the adapter's config, or leave `adapter` out",
)(lambda v: script(v, Lit(peft_model(task_type="SEQ_CLS")), tokens(), adapter=LoraConfig(r=2)))
add("PEFT model without task_type (frozen head)", peft_model, tokens)


def causal() -> Any:
    return get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))


add("PEFT causal language model (GPT-2, LoRA on c_attn)", causal, tokens, kind=LanguageModel)


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


add("tutorial CNN (conv1, conv2, fc1, fc2)", Cnn, lambda: pictures(40))
add("LSTM", Recurrent, tokens)
add("U-Net written by hand", UNet, lambda: pictures(40, 16))
add("nn.TransformerEncoder (torch's fused path in eval)", Encoder, tokens)


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


@exact("detection-like answers (boxes of other number)", "aggregate='single'")
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
    "a GAN, as it is",
    "LayersError",
    r"head=\['generator.4', 'discriminator'\]",
    "two networks are not guessed; what to paste is proposed",
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


@exact("autoencoder of two Sequentials", "layers, head")
def autoencoder(variant: Variant) -> Script:
    return script(variant, Autoencoder(), vectors(), layers=["encoder.0", "encoder.2", "decoder.0"], head="decoder.2")


class Spectral(Lit):
    def __init__(self) -> None:
        super().__init__(mlp())
        for layer in (0, 2, 4):
            nn.utils.parametrizations.spectral_norm(self.net[layer])


exact("spectral_norm")(lambda v: script(v, Spectral(), vectors()))


class Hooked(Lit):
    """Keeps an activation on itself, by a hook from __init__."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.net[1].register_forward_hook(self.keep)
        self.kept: list[Any] = []

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept = [output.detach().mean()]


@behaves("forward hook that writes to self")
def hooked(folder: Path) -> None:
    made = fit(folder / "store", lambda v: script(v, Hooked(), vectors()))
    with EnsembleModule.from_store(folder / "store", made.module) as served, torch.no_grad():
        served(torch.randn(4, 8))
    assert made.module.kept == []


@behaves(
    "to_torchscript(method='trace') of the served module",
    reason="a trace would answer for ever: the message names served.export",
)
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


@exact("step that reads trainer.train_dataloader.dataset.<attribute>")
def asking(variant: Variant) -> Script:
    rows = Rows(variant.samples(vectors()))
    return Script(Asking(mlp()), loader(rows), loader(rows, shuffle=False), s3t={"subjects": "names"})


@exact("ConcatDataset with subjects='owners'")
def concatenated(variant: Variant) -> Script:
    rows = variant.samples(vectors())
    half = len(rows) // 2
    parts = [Samples(rows.samples[:half], rows.owners[:half]), Samples(rows.samples[half:], rows.owners[half:])]
    return Script(Lit(mlp()), loader(torch.utils.data.ConcatDataset(parts)), loader(rows, shuffle=False))
