"""monai, sentence-transformers, pytorch-metric-learning, x-transformers, ncps, kornia, and optimizers from elsewhere."""

from __future__ import annotations

from typing import Any

import kornia.augmentation as augmentation
import lightning.pytorch as pl
import schedulefree
import torch
from datasets import Dataset as HuggingFaceDataset
from lion_pytorch import Lion
from monai.networks.nets import UNETR, BasicUNet, DenseNet121, DynUNet, SegResNet, UNet, ViT
from monai.transforms import Compose, RandFlip, RandGaussianNoise
from ncps.torch import CfC
from pytorch_metric_learning.losses import ArcFaceLoss, TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from sentence_transformers import models
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchsampler import ImbalancedDatasetSampler
from transformers import BertConfig, BertModel
from x_transformers import Decoder, TransformerWrapper

from tests.ecosystem.cases import Samples, Script, Variant, exact, loader, refused
from tests.ecosystem.scripts import LanguageModel, Lit, generator, mlp, pictures, script, tokens, vectors

LIBRARIES = (
    "lightning", "torch", "monai", "sentence-transformers", "pytorch-metric-learning", "x-transformers", "ncps", "kornia",
    "datasets", "lion-pytorch", "schedulefree", "torchsampler",
)  # fmt: skip


class Pixels(Lit):
    """Segmentation: a class for each pixel."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def scans(rows: int = 16, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    drawn = torch.randn(rows, 1, size, size, generator=generator())
    return [(row, (row[0] > 0).long()) for row in drawn]


UNETS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "BasicUNet": (lambda: BasicUNet(2, 1, 2, (8, 8, 8, 8, 8, 8)), "", {}),
    "SegResNet": (
        lambda: SegResNet(2, 8, 1, 2), "layers, head",
        {"layers": "net.down_layers", "head": ["net.up_layers", "net.up_samples", "net.conv_final"]},
    ),
    "DynUNet": (
        lambda: DynUNet(2, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2]), "layers, head",
        {"layers": ["net.input_block", "net.downsamples.0", "net.downsamples.1", "net.bottleneck"], "head": ["net.upsamples", "net.output_block"]},
    ),
    "UNETR": (
        lambda: UNETR(1, 2, 32, 8, 16, 32, 2, spatial_dims=2), "layers, head",
        {"layers": "net.vit.blocks", "head": ["net.encoder1", "net.encoder2", "net.encoder3", "net.encoder4", "net.decoder5", "net.decoder4", "net.decoder3", "net.decoder2", "net.out"]},
    ),
}  # fmt: skip
for name, (make, needed, arguments) in UNETS.items():
    exact(f"monai {name}", needed)(
        lambda v, make=make, arguments=arguments: script(v, Pixels(make()), scans(), batch_size=4, **arguments)
    )
refused(
    "monai UNet, as it is", "LayersError", r"layers=\['net.model.0', 'net.model.1'\], head='net.model.2'",
    "its parts are nested in each other; what to paste is proposed",
)(lambda v: script(v, Pixels(UNet(2, 1, 2, (4, 8, 16), (2, 2))), scans(), batch_size=4))  # fmt: skip


class Augmented(Samples):
    """Samples through monai's transforms, which keep generators of their own."""

    transform = Compose([RandFlip(prob=0.5), RandGaussianNoise(prob=0.5)])

    def __getitem__(self, row: int) -> Any:
        image, label = self.samples[row]
        return torch.as_tensor(self.transform(image)), label


@exact("monai DenseNet121, monai's random transforms")
def densenet(variant: Variant) -> Script:
    net = DenseNet121(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2))
    train = variant.samples(pictures(40, 32, 1))
    made = script(variant, Lit(net), pictures(40, 32, 1))
    made.data = loader(Augmented(train.samples, train.owners))
    return made


class First(nn.Module):
    """monai's ViT answers with hidden states too."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViT(1, 32, 8, 16, 32, 2, 2, classification=True, num_classes=2, spatial_dims=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x)[0]


exact("monai ViT")(lambda v: script(v, Lit(First()), pictures(40, 32, 1)))


class TextEncoder(pl.LightningModule):
    """A sentence-transformers model, fine-tuned with a contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=90, num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.pooling = models.Pooling(16)
        self.dense = models.Dense(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        features = {
            "token_embeddings": self.encoder(input_ids=ids).last_hidden_state,
            "attention_mask": torch.ones_like(ids),
        }
        return self.dense(self.pooling(features))["sentence_embedding"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


exact("sentence-transformers Pooling and Dense on BERT")(lambda v: script(v, TextEncoder(), tokens()))


class Embedder(Lit):
    """A metric-learning module: a miner, and a loss; ArcFace has weights of its own."""

    def __init__(self, criterion: Any) -> None:
        super().__init__(mlp(classes=4))
        self.criterion = criterion
        self.miner = MultiSimilarityMiner()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found = self(batch[0])
        return self.criterion(found, batch[1], self.miner(found, batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.criterion(self(batch[0]), batch[1]))


exact("pytorch-metric-learning TripletMarginLoss, MultiSimilarityMiner")(
    lambda v: script(v, Embedder(TripletMarginLoss()), vectors())
)
exact("pytorch-metric-learning ArcFaceLoss (weights in the loss)", "head=[..., 'criterion']")(
    lambda v: script(v, Embedder(ArcFaceLoss(2, 4)), vectors(), head=["net.4", "criterion"], layers=["net.0", "net.2"])
)


class NextToken(LanguageModel):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))


exact("x-transformers TransformerWrapper")(
    lambda v: script(
        v,
        NextToken(TransformerWrapper(num_tokens=90, max_seq_len=16, attn_layers=Decoder(dim=16, depth=2, heads=2))),
        tokens(),
    )
)


class Liquid(nn.Module):
    """A closed-form continuous-time network over a series."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = CfC(8, 16, batch_first=True)
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x[:, None].expand(-1, 3, -1))[0][:, -1])


exact("ncps CfC", "layers, head, slices=1")(
    lambda v: script(v, Lit(Liquid()), vectors(), layers=["net.rnn"], head="net.fc", slices=1, shards=3)
)


class OnDevice(Lit):
    """kornia's augmentation in `on_after_batch_transfer`, as its Lightning tutorial has it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.transform = nn.Sequential(augmentation.RandomHorizontalFlip(), augmentation.RandomErasing())

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return (self.transform(images) if self.trainer.training else images), labels


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


exact("kornia's augmentation in on_after_batch_transfer")(lambda v: script(v, OnDevice(cnn()), pictures(40, 16)))


class ByLion(Lit):
    def configure_optimizers(self) -> Any:
        return Lion(self.parameters(), lr=1e-3)


class ScheduleFree(Lit):
    """An optimizer that keeps two sets of weights, and has to be told which is asked for."""

    def configure_optimizers(self) -> Any:
        return schedulefree.AdamWScheduleFree(self.parameters(), lr=1e-2)

    def on_train_start(self) -> None:
        self.optimizers().optimizer.train()

    def on_train_end(self) -> None:
        self.optimizers().optimizer.eval()


exact("lion-pytorch")(lambda v: script(v, ByLion(mlp()), vectors()))
exact("schedulefree AdamW")(lambda v: script(v, ScheduleFree(mlp()), vectors()))


@exact("a data set of Hugging Face `datasets`", "subjects=lambda data: data['who']")
def hugging_face(variant: Variant) -> Script:
    rows = variant.samples(vectors())
    columns = {"x": [x.tolist() for x, _ in rows.samples], "y": [y for _, y in rows.samples], "who": rows.owners}
    data = HuggingFaceDataset.from_dict(columns).with_format("torch")
    made = script(variant, Lit(mlp()), vectors())
    made.data = DataLoader(data, 8, shuffle=True, collate_fn=pairs)
    made.s3t = {"subjects": lambda dataset: dataset.with_format(None)["who"]}
    return made


def pairs(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([sample["x"] for sample in samples]), torch.stack([sample["y"] for sample in samples])


class Labelled(Dataset[Any]):
    def __init__(self, data: Samples) -> None:
        self.data, self.owners = data, data.owners

    def get_labels(self) -> list[int]:
        return [label for _, label in self.data.samples]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        return self.data[row]


@refused(
    "torchsampler ImbalancedDatasetSampler", "DataError|UnsupportedError", "ImbalancedDatasetSampler",
    "its weights count everyone's labels; a WeightedRandomSampler with weights of a row's own is trained",
)  # fmt: skip
def imbalanced(variant: Variant) -> Script:
    rows = Labelled(variant.samples(vectors()))
    return Script(Lit(mlp()), DataLoader(rows, 8, sampler=ImbalancedDatasetSampler(rows)))
