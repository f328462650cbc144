"""A network that is run one row at a time: what it makes of a row depends on that row alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.tuning.nested import replace_tensors, tensors_in
from lightning_s3t.tuning.row_passes import run_by_row

ROWS = 5
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "pad_token_id": 0,
}
IDS = torch.randint(3, 60, (ROWS, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 4:] = 0
IMAGES = torch.rand(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """Draws a random number for every row, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Changing(nn.Module):
    """Changes what it is given, and returns a buffer that the next row overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.held.copy_(x.mul_(2))
        return self.held


class Answers(nn.Module):
    """Returns what it is told to."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "linear": lambda: (nn.Sequential(nn.Linear(64, 64), nn.Dropout(), nn.Linear(64, 3)), (torch.rand(ROWS, 64),), {}),
    "vit": lambda: (
        timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=24),
        (IMAGES,),
        {},
    ),
    "resnet": lambda: (timm.create_model("test_resnet", num_classes=3), (IMAGES,), {}),
    "channels last": lambda: (
        timm.create_model("test_resnet", num_classes=3),
        (IMAGES.to(memory_format=torch.channels_last),),
        {},
    ),
    "bert": lambda: (
        transformers.AutoModel.from_config(transformers.BertConfig(**TEXT)),
        (),
        {"input_ids": IDS, "attention_mask": MASK},
    ),
    "padded encoder": lambda: (encoder(), (torch.rand(ROWS, 6, 8),), {"src_key_padding_mask": MASK == 0}),
    "noise": lambda: (Noisy(), (torch.rand(ROWS, 4),), {}),
    "changes its input": lambda: (Changing(), (torch.rand(ROWS, 4),), {}),
}


def pick(value: Any, rows: list[int]) -> Any:
    return replace_tensors(value, lambda _, tensor: tensor[rows])


def same(first: Any, second: Any) -> bool:
    ours, theirs = dict(tensors_in(first)), dict(tensors_in(second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[path], theirs[path]) for path in ours)


@pytest.mark.parametrize("name", CASES)
def test_a_row_has_the_same_bits_whatever_other_rows_are_there_and_in_whatever_order(name: str) -> None:
    torch.manual_seed(0)
    network, args, kwargs = CASES[name]()
    whole = run_by_row(network, args, kwargs)
    assert list(tensors_in(whole))
    for rows in ([2], [4, 2, 0], [1, 1, 3], [3, 4, 0, 1, 2]):
        assert same(run_by_row(network, pick(args, rows), pick(kwargs, rows)), pick(whole, rows))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"noise", "changes its input"}))
def test_answers_are_those_of_a_batch_but_for_rounding(name: str) -> None:
    torch.manual_seed(0)
    network, args, kwargs = CASES[name]()
    answer = run_by_row(network, args, kwargs)
    # with gradients: without them, torch's encoder layers run in one fused call
    expected = dict(tensors_in(network.eval()(*args, **kwargs)))
    assert dict(tensors_in(answer)).keys() == expected.keys()
    for path, tensor in tensors_in(answer):
        torch.testing.assert_close(tensor, expected[path].detach(), rtol=1e-4, atol=1e-5)


def test_no_other_row_is_looked_at() -> None:
    network = nn.Sequential(nn.Linear(4, 3))
    seen: list[int] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    run_by_row(network, (torch.rand(ROWS, 4),))
    assert seen == [1] * ROWS


def test_how_a_batch_lies_in_memory_does_not_show() -> None:
    torch.manual_seed(0)
    network, strides = timm.create_model("test_resnet", num_classes=3), []
    network.register_forward_pre_hook(lambda module, inputs: strides.append(inputs[0].stride()))
    first = run_by_row(network, (IMAGES,))
    assert torch.equal(first, run_by_row(network, (IMAGES.to(memory_format=torch.channels_last),)))
    assert torch.equal(first[1:], run_by_row(network, (IMAGES[1:],)))
    assert len(set(strides)) == 1


def test_tuples_and_dicts_of_tensors_go_in_and_come_out() -> None:
    network = Answers(lambda batch: {"sum": batch["x"] + batch["more"][0], "rest": (batch["x"] * 2, None, "text")})
    batch = {"x": torch.rand(ROWS, 4), "more": (torch.rand(ROWS, 1), 3)}
    answer = run_by_row(network, (batch,))
    assert torch.equal(answer["sum"], batch["x"] + batch["more"][0])
    assert torch.equal(answer["rest"][0], batch["x"] * 2)
    assert answer["rest"][1:] == (None, "text")


def test_outputs_of_transformers_stay_what_they_are() -> None:
    network = transformers.AutoModelForSequenceClassification.from_config(transformers.BertConfig(**TEXT))
    answer = run_by_row(network, (), {"input_ids": IDS})
    assert type(answer).__name__ == "SequenceClassifierOutput"
    assert answer.logits is answer["logits"]
    assert answer.logits.shape == (ROWS, 2)


def test_a_part_of_the_network_can_be_asked() -> None:
    network = timm.create_model("test_resnet", num_classes=3).train()
    answer = run_by_row(network, (IMAGES,), forward=network.forward_features)
    torch.testing.assert_close(answer, network.eval().forward_features(IMAGES).detach(), rtol=1e-4, atol=1e-5)


def test_everything_is_afterwards_as_if_it_had_not_been() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout()).eval(), Noisy()).train()
    x = torch.rand(ROWS, 4)
    modes, kept, fast = [m.training for m in network.modules()], x.clone(), torch.backends.mha.get_fastpath_enabled()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run_by_row(network, (x,))
    assert torch.equal(torch.rand(3), expected)
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(x, kept)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_what_a_network_changes_in_place_is_not_the_callers() -> None:
    x = torch.rand(ROWS, 4)
    kept = x.clone()
    assert torch.equal(run_by_row(Changing(), (x,)), kept * 2)
    assert torch.equal(x, kept)


def test_answers_carry_no_gradients_and_can_be_trained_on() -> None:
    network, head = nn.Linear(4, 4), nn.Linear(4, 2)
    with torch.inference_mode():
        answer = run_by_row(network, (torch.rand(ROWS, 4),))
    assert not answer.requires_grad
    head(answer).sum().backward()
    assert network.weight.grad is None
    assert head.weight.grad is not None


def test_a_step_under_autocast_reaches_the_weights_afterwards() -> None:
    network, x = nn.Linear(4, 4), torch.rand(ROWS, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert run_by_row(network, (x,)).dtype == torch.bfloat16
        network(x).float().sum().backward()
    assert network.weight.grad is not None


@pytest.mark.parametrize(
    "args",
    [
        (),
        (torch.rand(0, 4),),
        (torch.tensor(1.0),),
        (torch.rand(5, 4), torch.rand(4, 4)),
        (torch.rand(5), torch.tensor(0)),
    ],
    ids=["no tensor", "no row", "no dimension", "different numbers", "a tensor without rows"],
)
def test_arguments_without_rows_are_refused(args: tuple[Tensor, ...]) -> None:
    with pytest.raises(ConfigurationError, match="same number of rows"):
        run_by_row(Answers(lambda *tensors: tensors[0]), args)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.mean(),
        lambda x: x.T,
        lambda x: x[:, x[0] > 0],
        lambda x: x.argmax().item(),
        lambda x: {"x": x, "other": object()},
        lambda x: {str(x.argmax().item()): x},
    ],
    ids=["no rows", "rows elsewhere", "different shapes", "different numbers", "an object", "different names"],
)
def test_answers_that_cannot_be_joined_are_refused(make: Callable[[Tensor], Any]) -> None:
    x = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]])
    with pytest.raises(ConfigurationError, match="same kind for every row"):
        run_by_row(Answers(make), (x,))
