"""The activation cache alone: what networks answer with it, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from lightning_s3t.errors import CacheError
from lightning_s3t.tuning import find_layers
from lightning_s3t.tuning.cache.activation_cache import ActivationCache
from lightning_s3t.tuning.cache.activations import Activations, MemoryBuffers

SLICES, ROWS = 4, 5
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 60, "n_positions": 8, "pad_token_id": 0}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
IDS = torch.randint(3, 60, (ROWS, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 4:] = 0
IMAGES = torch.rand(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class T5Classifier(nn.Module):
    """Its blocks hand a bias on, beside the activations."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, vocab_size=60)
        self.encoder = transformers.T5EncoderModel(config)
        self.head = nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(ids).last_hidden_state.mean(1))


class SequenceFirst(nn.Module):
    """The rows of its activations are in the second dimension; its blocks run in one fused call without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3) for _ in range(4)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(0))


class Chain(nn.Module):
    """Blocks one after the other, with whatever else a test makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(4)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


def text(config: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
    arguments = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.arange(ROWS) % 2}
    return transformers.AutoModelForSequenceClassification.from_config(config), (), arguments


def image(name: str, **arguments: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
    return timm.create_model(name, num_classes=3, **arguments), (IMAGES,), {}


def language(config: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
    return transformers.AutoModelForCausalLM.from_config(config), (), {"input_ids": IDS, "labels": IDS}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any, dict[str, Any]]]] = {
    "sequential": lambda: (
        nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)), nn.Linear(4, 2)),
        (torch.rand(ROWS, 4),),
        {},
    ),
    "vit": lambda: image("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=24),
    "resnet, which writes into its activations": lambda: image("test_resnet"),
    "convnext": lambda: image("test_convnext"),
    "bert": lambda: text(transformers.BertConfig(**TEXT)),
    "deberta, whose positions all layers read": lambda: text(transformers.DebertaV2Config(**TEXT)),
    "llama, whose positions all layers read": lambda: text(transformers.LlamaConfig(**TEXT)),
    "gpt2": lambda: language(transformers.GPT2Config(**GPT2)),
    "t5": lambda: (T5Classifier(), (IDS,), {}),
    "sequence first": lambda: (SequenceFirst(), (torch.rand(ROWS, 3, 8),), {}),
}


def make_cache(network: nn.Module, **arguments: Any) -> ActivationCache:
    layers = find_layers(network, SLICES, **arguments)
    return ActivationCache(network, layers, Activations(MemoryBuffers()), rows=ROWS)


def numbers(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer.logits


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_the_same_at_every_stage_whether_rows_are_there_or_not(name: str) -> None:
    torch.manual_seed(0)
    network, args, kwargs = NETWORKS[name]()
    network.eval()
    expected = numbers(network(*args, **kwargs))
    cache = make_cache(network)
    for stage in range(1, SLICES + 1):
        with cache.acting(stage):
            first, again = (numbers(network(*args, **kwargs)) for _ in range(2))
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(first, again)
    assert torch.equal(numbers(network(*args, **kwargs)), expected), "everything is as it was"


@pytest.mark.parametrize("name", ["vit", "resnet, which writes into its activations", "bert"])
def test_what_is_kept_of_a_row_does_not_depend_on_who_is_in_the_batch_with_it(name: str) -> None:
    torch.manual_seed(0)
    network, args, kwargs = NETWORKS[name]()
    network.eval()
    path = find_layers(network, SLICES).groups[0].modules[0]
    first = next(part for part in network.get_submodule(path).modules() if not list(part.children()))

    def entry(rows: list[int]) -> Tensor:
        seen: list[Tensor] = []
        with make_cache(network).acting(1):
            handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
            network(*(a[rows] for a in args), **{key: value[rows] for key, value in kwargs.items()})
            handle.remove()
        return seen[-1]

    whole, alone, moved = entry([0, 1, 2, 3, 4]), entry([2]), entry([4, 2, 0])
    assert torch.equal(whole[2], alone[0])
    assert torch.equal(whole[2], moved[1])


def test_frozen_layers_draw_no_dropout_and_take_no_random_number_from_the_others() -> None:
    torch.manual_seed(0)
    network = Chain().train()
    x = torch.rand(ROWS, 4)
    cache = make_cache(network)
    answers = []
    for _ in range(2):  # the rows are computed at the first, and there at the second
        torch.manual_seed(1)
        with cache.acting(1):
            answers.append(network(x))
    assert torch.equal(*answers)
    assert all(module.training for module in network.modules())


def test_gradients_begin_at_the_lowest_layers_that_are_trained() -> None:
    torch.manual_seed(0)
    network = Chain().eval()
    with make_cache(network).acting(2):
        network(torch.rand(ROWS, 4)).sum().backward()
    reached = [block[0].weight.grad is not None for block in network.blocks]
    assert reached == [False, False, True, True]
    assert network.stem.weight.grad is None


def test_what_a_validation_in_inference_mode_has_kept_serves_a_training_step() -> None:
    torch.manual_seed(0)
    network, x = Chain().eval(), torch.rand(ROWS, 4)
    with make_cache(network).acting(1):
        with torch.inference_mode():
            network(x.clone())
        network(x).sum().backward()
    assert network.blocks[3][0].weight.grad is not None


def test_gradients_reach_the_trained_layers_under_autocast() -> None:
    # weights that are cast without gradients are kept by autocast, and would serve the step
    torch.manual_seed(0)
    network = Chain().eval()
    with make_cache(network).acting(1), torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(ROWS, 4)).float().sum().backward()
    assert network.blocks[3][0].weight.grad is not None


def test_one_row_is_the_same_under_another_precision_only_by_name() -> None:
    torch.manual_seed(0)
    network, x = Chain().eval(), torch.rand(ROWS, 4)
    with make_cache(network).acting(1):
        whole = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
        assert half.dtype == torch.bfloat16
        assert torch.equal(network(x), whole)


def test_arguments_beside_the_rows_count_too() -> None:
    class Scaled(Chain):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x * scale)

    torch.manual_seed(0)
    network, x = Scaled().eval(), torch.rand(ROWS, 4)
    expected = network(x, scale=3.0)
    with make_cache(network).acting(1):
        network(x, scale=1.0)
        torch.testing.assert_close(network(x, scale=3.0), expected)


def test_blocks_that_belong_to_no_group_are_kept_too() -> None:
    torch.manual_seed(0)
    network, args, _ = image("vit_tiny_patch16_224", img_size=32, depth=6, embed_dim=24)
    network.eval()
    calls: list[str] = []
    network.blocks[0].attn.register_forward_hook(lambda *_: calls.append("below"))
    cache = ActivationCache(
        network,
        find_layers(network, 2, layers=["blocks.4", "blocks.5"], head="head"),
        Activations(MemoryBuffers()),
        rows=ROWS,
    )
    with cache.acting(2):
        network(*args)
        calls.clear()
        network(*args)
    assert calls == []


class ReadsStem(Chain):
    """Reads the stem beside the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        stem = x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x + stem)


def test_a_stem_that_is_read_above_is_computed_as_ever() -> None:
    torch.manual_seed(0)
    network, x = ReadsStem().eval(), torch.rand(ROWS, 4)
    expected = network(x)
    with make_cache(network).acting(1):
        torch.testing.assert_close(network(x), expected)


class Skips(Chain):
    """Reads the first block beside the others."""

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x = torch.tanh(block(x))
        return self.head(x + first)


class AllStates(Chain):
    """Returns the activations of all blocks."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        states = [self.stem(x)]
        for block in self.blocks:
            states.append(torch.tanh(block(states[-1])))
        return self.head(states[-1]), states


class LooksAround(Chain):
    """Makes of a row what the batch is like."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class SkipsInTraining(Chain):
    """Has a further output while it is trained, as some image networks do."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = x = self.blocks[0](self.stem(x))
        for block in self.blocks[1:]:
            x = torch.tanh(block(x))
        return (self.head(x), self.head(first)) if self.training else (self.head(x),)


class NoNumbers(Chain):
    """Returns classes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class TakesAnything(Chain):
    """Has an argument that is none of the common types."""

    def forward(self, x: Tensor, options: object = None) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Skips, r"Skips does not answer the same if it begins at blocks.3, .*that of .*blocks.0.*cache=None"),
        (AllStates, "all hidden states"),
        (LooksAround, "frozen layers of LooksAround make of a row depends on the others in its batch"),
        (SkipsInTraining, "In training mode, SkipsInTraining reads something"),
        (NoNumbers, "NoNumbers returns no numbers"),
    ],
)
def test_networks_that_cannot_begin_in_the_middle_are_refused(network: type[Chain], message: str) -> None:
    torch.manual_seed(0)
    made = network().train()
    with make_cache(made).acting(1), pytest.raises(CacheError, match=f"(?s){message}"):
        made(torch.rand(ROWS, 4))


def test_dense_skip_connections_are_refused() -> None:
    network = timm.create_model("densenet121", num_classes=3).eval()
    with make_cache(network).acting(1), pytest.raises(CacheError, match="DenseNet does not answer the same"):
        network(torch.rand(2, 3, 32, 32))


def test_arguments_that_cannot_be_compared_are_refused() -> None:
    network = TakesAnything().eval()
    with make_cache(network).acting(1), pytest.raises(CacheError, match="is called with a object"):
        network(torch.rand(ROWS, 4), options=object())


def test_a_block_that_is_called_past_the_network_is_refused() -> None:
    network = Chain().eval()
    with (
        make_cache(network).acting(1),
        pytest.raises(CacheError, match=r"blocks.3 was called outside of Chain.forward"),
    ):
        network.blocks[3](torch.rand(ROWS, 8))


def test_more_than_there_is_room_for_is_refused_with_the_numbers() -> None:
    network = Chain().eval()
    layers = find_layers(network, SLICES)
    cache = ActivationCache(network, layers, Activations(MemoryBuffers()), rows=10**12)
    with cache.acting(1), pytest.raises(CacheError, match=r"1000000000000 rows .* would take .* GiB .*cache='disk'"):
        network(torch.rand(ROWS, 4))


def test_rows_that_are_never_the_same_are_counted() -> None:
    network = Chain().train()
    cache = make_cache(network)
    with cache.acting(1):
        cache.begin_epoch(0)
        fixed = torch.rand(ROWS, 4)
        network(fixed)
        assert cache.asked == 0
        cache.begin_epoch(1)
        network(fixed)
        network(torch.rand(ROWS, 4))
    assert (cache.found, cache.asked) == (ROWS, 2 * ROWS)
