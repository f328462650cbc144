"""The methods that take optimizer steps, each against what is known of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_s3t.errors import ConfigurationError, UnsupportedError
from lightning_s3t.methods import (
    SCRUB,
    BadTeacher,
    DescentMethod,
    EditSession,
    FineTune,
    GradientAscent,
    LabelFlipping,
    NegGradPlus,
    RandomLabels,
    SalUn,
    Sparse,
)
from lightning_s3t.methods.descent import mixed
from lightning_s3t.methods.distillation import divergence
from tests.methods.sessions import CLASSES, Mlp, both, make_rows, make_session, rows_of, same_bits, state, trained

FORGET, RETAIN = make_rows(5, seed=1), make_rows(23, seed=2)
SMALL = {"batch_size": 8, "epochs": 2, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return state(trained(both(FORGET, RETAIN)))


@pytest.fixture
def net(weights: dict[str, Tensor]) -> Mlp:
    net = Mlp()
    net.load_state_dict(weights)
    return net


def edited(net: Mlp, method: DescentMethod, seed: int = 0) -> dict[str, Tensor]:
    """The weights that a method makes of a network's; the network is as before afterwards."""
    before = state(net)
    method.edit(make_session(net, FORGET, RETAIN, seed=seed))
    after = state(net)
    net.load_state_dict(before)
    return after


def loss_of(net: Mlp, rows: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(rows[0]), rows[1])


def steps_by_hand(net: Mlp, losses: list[Callable[[], Tensor]], rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), rate)
    for loss in losses:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return state(net)


ALL: list[DescentMethod] = [
    FineTune(**SMALL),
    GradientAscent(**SMALL),
    NegGradPlus(**SMALL),
    RandomLabels(**SMALL),
    RandomLabels(**SMALL, schedule="forget_first"),
    SalUn(**SMALL),
    LabelFlipping(**SMALL),
    SCRUB(**SMALL, ascent_epochs=1),
    BadTeacher(**SMALL),
    Sparse(**SMALL, prune=0.3),
]


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_an_edit_changes_the_weights_and_is_the_same_to_the_bit_when_it_is_done_again(
    method: DescentMethod, net: Mlp, weights: dict[str, Tensor]
) -> None:
    first = edited(net, method)
    assert not same_bits(first, weights)
    assert same_bits(first, edited(net, method))
    if not isinstance(method, GradientAscent):  # which has all its rows in one step
        assert not same_bits(first, edited(net, method, seed=1))


def test_fine_tuning_is_gradient_descent_on_the_rows_that_stay(net: Mlp) -> None:
    found = edited(net, FineTune(epochs=2, batch_size=8, learning_rate=0.1, momentum=0.0))
    rows = make_session(net, FORGET, RETAIN).retain
    batches = [batch for _ in range(2) for batch in rows.shuffled(8)]
    expected = steps_by_hand(net, [lambda batch=batch: loss_of(net, batch) for batch in batches], 0.1)
    assert same_bits(found, expected)


def test_gradient_ascent_raises_the_loss_of_the_forgotten_rows(net: Mlp) -> None:
    found = edited(net, GradientAscent(epochs=1, learning_rate=0.1, momentum=0.0))
    expected = steps_by_hand(net, [lambda: -loss_of(net, FORGET)], 0.1)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("kind", [GradientAscent, NegGradPlus])
def test_above_its_ceiling_a_loss_is_not_raised(kind: Any, net: Mlp, weights: dict[str, Tensor]) -> None:
    above, below = {"ceiling": loss_of(net, FORGET).item() / 100}, {"ceiling": 100.0}
    if kind is GradientAscent:
        assert same_bits(edited(net, kind(**SMALL, **above)), weights)
    else:
        only_retained = edited(net, kind(**SMALL, **above))
        for tensor, expected in zip(only_retained.values(), _scaled_fine_tuning(net, 0.95).values(), strict=True):
            torch.testing.assert_close(tensor, expected)
    assert same_bits(edited(net, kind(**SMALL, **below)), edited(net, kind(**SMALL)))


def _scaled_fine_tuning(net: Mlp, scale: float) -> dict[str, Tensor]:
    return edited(net, replace(FineTune(**SMALL), learning_rate=SMALL["learning_rate"] * scale))


def test_neg_grad_plus_with_weight_0_is_fine_tuning(net: Mlp) -> None:
    assert same_bits(edited(net, NegGradPlus(**SMALL, forget_weight=0.0)), edited(net, FineTune(**SMALL)))


def test_neg_grad_plus_takes_the_difference_of_the_two_losses(net: Mlp) -> None:
    found = edited(net, NegGradPlus(epochs=1, batch_size=30, learning_rate=0.1, momentum=0.0, forget_weight=0.3))
    expected = steps_by_hand(net, [lambda: 0.7 * loss_of(net, RETAIN) - 0.3 * loss_of(net, FORGET)], 0.1)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def noting_labels(net: Mlp, seen: list[tuple[Tensor, Tensor]]) -> EditSession:
    """A session that notes the rows and labels whose loss is asked for."""
    session = make_session(net, FORGET, RETAIN)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.extend(zip(*batch, strict=True))
        return loss_of(net, batch)

    return replace(session, loss=loss)


@pytest.mark.parametrize(
    "method",
    [
        RandomLabels(epochs=40, batch_size=8),
        RandomLabels(epochs=40, batch_size=8, schedule="forget_first"),
        SalUn(epochs=40, batch_size=8),
        LabelFlipping(epochs=40, batch_size=8),
    ],
    ids=repr,
)
def test_a_forgotten_row_has_one_wrong_label_and_the_others_keep_theirs(method: DescentMethod, net: Mlp) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    method.edit(noting_labels(net, seen))
    seen = seen[1:]  # the first row asks for the number of classes
    if isinstance(method, SalUn):
        seen = seen[len(FORGET[0]) :]  # and these for the gradients
    drawn: dict[int, set[int]] = {}
    for features, label in seen:
        of_forgotten = (FORGET[0] == features).all(1).nonzero()
        if len(of_forgotten):
            drawn.setdefault(int(of_forgotten), set()).add(int(label))
        else:
            assert RETAIN[1][(RETAIN[0] == features).all(1)].item() == label
    assert sorted(drawn) == list(range(len(FORGET[0])))
    for row, labels in drawn.items():
        assert len(labels) == 1
        assert labels != {int(FORGET[1][row])}
    once = Counter(tuple(features.tolist()) for features, _ in seen)
    assert set(once.values()) == {40}  # every row once an epoch


def test_every_wrong_label_is_drawn(net: Mlp) -> None:
    forget = (torch.randn(300, 6), torch.zeros(300, dtype=torch.long))
    seen: list[tuple[Tensor, Tensor]] = []
    session = replace(make_session(net, forget, RETAIN), loss=noting_labels(net, seen).loss)
    LabelFlipping(batch_size=300).edit(session)
    counts = Counter(int(label) for _, label in seen[1:])
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 60


def test_labels_that_are_no_classes_of_the_network_are_refused(net: Mlp) -> None:
    forget = (FORGET[0], FORGET[1] + CLASSES)
    with pytest.raises(UnsupportedError, match="4 columns for labels from"):
        RandomLabels().edit(make_session(net, forget, RETAIN, lambda batch: net(batch[0]).mean()))


def test_salun_with_all_weights_is_random_labels(net: Mlp) -> None:
    same = {**SMALL, "optimizer": "adam"}
    assert same_bits(edited(net, SalUn(**same, share=1.0)), edited(net, RandomLabels(**same)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_salun_changes_the_salient_weights_alone_with_weight_decay_and_momentum_too(
    optimizer: str, net: Mlp, weights: dict[str, Tensor]
) -> None:
    gradients = torch.autograd.grad(loss_of(net, FORGET), list(net.parameters()))
    sizes = torch.cat([gradient.flatten() for gradient in gradients]).abs()
    salient = sizes >= sizes.sort(descending=True).values[round(0.3 * len(sizes)) - 1]
    method = SalUn(epochs=50, batch_size=8, optimizer=optimizer, weight_decay=0.01, share=0.3)  # type: ignore[arg-type]
    after = edited(net, method)
    changed = torch.cat([(after[name] != weights[name]).flatten() for name in weights])
    assert torch.equal(changed, salient)


def test_label_flipping_changes_its_share_of_each_layer_in_a_step(net: Mlp, weights: dict[str, Tensor]) -> None:
    after = edited(net, LabelFlipping(epochs=1, learning_rate=0.1, share=0.25))
    for name, before in weights.items():
        assert 0 < int((after[name] != before).sum()) <= round(0.25 * before.numel())


def test_label_flipping_of_whole_layers_needs_the_forgotten_rows_alone(net: Mlp) -> None:
    session = make_session(net, FORGET, RETAIN)
    session.retain.read = lambda _: pytest.fail("it reads the rows that stay")
    LabelFlipping(share=1.0).edit(session)


def test_scrub_without_ascent_and_with_weights_0_changes_nothing(net: Mlp, weights: dict[str, Tensor]) -> None:
    assert same_bits(edited(net, SCRUB(ascent_epochs=0, alpha=0.0, gamma=0.0)), weights)


def test_scrub_with_the_training_loss_alone_is_fine_tuning(net: Mlp) -> None:
    same = {**SMALL, "optimizer": "sgd"}
    found = edited(net, SCRUB(**same, ascent_epochs=0, alpha=0.0))
    for tensor, expected in zip(found.values(), edited(net, FineTune(**same)).values(), strict=True):
        torch.testing.assert_close(tensor, expected)


def test_scrub_leaves_its_teacher_on_the_forgotten_rows(net: Mlp, weights: dict[str, Tensor]) -> None:
    teacher = {rows: net(rows[0]).detach() for rows in (FORGET, RETAIN)}
    net.load_state_dict(edited(net, SCRUB(epochs=20, ascent_epochs=5, learning_rate=5e-3, batch_size=8)))
    away = {rows: divergence(net(rows[0]), logits).item() for rows, logits in teacher.items()}
    assert away[FORGET] > 3 * away[RETAIN]


def test_a_bad_teacher_makes_the_model_answer_like_an_untrained_one(net: Mlp) -> None:
    bad = Mlp(seed=99)(FORGET[0]).detach()
    before = divergence(net(FORGET[0]), bad).item()
    good = net(RETAIN[0]).detach()
    method = BadTeacher(epochs=60, learning_rate=5e-3, batch_size=8, retain_share=1.0)
    net.load_state_dict(edited(net, method))
    assert divergence(net(FORGET[0]), bad).item() < before / 2
    assert divergence(net(RETAIN[0]), good).item() < divergence(net(RETAIN[0]), Mlp(seed=99)(RETAIN[0])).item() / 2


def test_a_bad_teacher_that_is_the_model_itself_teaches_nothing(net: Mlp, weights: dict[str, Tensor]) -> None:
    session = replace(make_session(net, FORGET, RETAIN), untrained=lambda: weights)
    BadTeacher(epochs=3, optimizer="sgd", learning_rate=0.1, batch_size=8).edit(session)
    for name, tensor in state(net).items():
        torch.testing.assert_close(tensor, weights[name])


def test_sparse_without_penalty_and_pruning_is_fine_tuning(net: Mlp) -> None:
    assert same_bits(edited(net, Sparse(**SMALL, gamma=0.0)), edited(net, FineTune(**SMALL)))


def test_the_penalty_is_the_sum_of_all_sizes_and_falls_to_zero(net: Mlp, weights: dict[str, Tensor]) -> None:
    found = edited(net, Sparse(epochs=2, batch_size=30, learning_rate=0.1, momentum=0.0, gamma=0.01))

    def loss(gamma: float) -> Tensor:
        return loss_of(net, RETAIN) + gamma * sum(parameter.abs().sum() for parameter in net.parameters())

    expected = steps_by_hand(net, [lambda: loss(0.01), lambda: loss(0.005)], 0.1)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def test_what_is_pruned_stays_zero(net: Mlp, weights: dict[str, Tensor]) -> None:
    after = edited(net, Sparse(**SMALL, gamma=0.0, prune=0.4, weight_decay=0.1))
    matrices = [name for name, tensor in weights.items() if tensor.ndim > 1]
    sizes = torch.cat([weights[name].abs().flatten() for name in matrices])
    small = sizes <= sizes.sort().values[round(0.4 * len(sizes)) - 1]
    zero = torch.cat([(after[name] == 0).flatten() for name in matrices])
    assert torch.equal(zero, small)


@pytest.mark.parametrize(("forget", "retain", "size"), [(5, 23, 8), (1, 40, 4), (30, 2, 8), (3, 3, 100)])
def test_mixed_steps_have_every_row_once_and_the_forgotten_spread_evenly(forget: int, retain: int, size: int) -> None:
    net = Mlp()
    session = make_session(net, make_rows(forget, 1), make_rows(retain, 2))
    parts = list(mixed(session, size))
    assert sorted(row for part, _ in parts for row in part) == list(range(forget))
    assert sorted(row for _, part in parts for row in part) == list(range(retain))
    assert max(len(first) + len(second) for first, second in parts) <= size + 1
    counts = [len(part) for part, _ in parts]
    assert max(counts) - min(counts) <= 1


def test_a_share_of_the_rows_that_stay_is_another_one_in_each_epoch() -> None:
    session = make_session(Mlp(), FORGET, RETAIN)
    drawn = [sorted(row for _, part in mixed(session, 8, 0.3) for row in part) for _ in range(2)]
    assert [len(rows) for rows in drawn] == [7, 7]
    assert drawn[0] != drawn[1]


def test_the_divergence_is_that_of_kullback_and_leibler() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(divergence(student, teacher, temperature=2.0), expected)


def test_rows_are_in_another_order_at_every_call_and_the_same_with_the_same_seed() -> None:
    rows, same = rows_of(torch.arange(20), seed=3), rows_of(torch.arange(20), seed=3)
    first, second = (torch.cat(list(rows.shuffled(6))).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == torch.cat(list(same.shuffled(6))).tolist()


def test_other_weights_are_held_for_a_while_and_the_models_own_are_back_afterwards(net: Mlp) -> None:
    session, own = make_session(net, FORGET, RETAIN), state(net)
    loss = session.loss(FORGET)
    with session.holding(session.untrained()):
        torch.testing.assert_close(net(FORGET[0]), Mlp(seed=99)(FORGET[0]))
        assert not torch.is_grad_enabled()
    assert same_bits(state(net), own)
    between = torch.autograd.grad(loss, list(net.parameters()))  # of a graph that was made before
    straight = torch.autograd.grad(session.loss(FORGET), list(net.parameters()))
    assert all(torch.equal(*pair) for pair in zip(between, straight, strict=True))


def test_a_network_that_is_not_called_or_gives_no_logits_is_refused(net: Mlp) -> None:
    session = make_session(net, FORGET, RETAIN)
    around = replace(session, loss=lambda batch: F.cross_entropy(net.forward(batch[0]), batch[1]))
    with pytest.raises(UnsupportedError, match="called Mlp 0 times"):
        SCRUB().edit(around)
    flat = nn.Sequential(nn.Linear(6, 4), nn.Flatten(0))
    with pytest.raises(UnsupportedError, match=r"logits of shape \[..., classes\]"):
        SCRUB().edit(make_session(flat, FORGET, RETAIN, lambda batch: flat(batch[0]).mean()))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (FineTune, {"epochs": 0}),
        (FineTune, {"learning_rate": 0.0}),
        (FineTune, {"learning_rate": math.nan}),
        (FineTune, {"batch_size": 2.0}),
        (FineTune, {"optimizer": "lbfgs"}),
        (FineTune, {"momentum": -0.1}),
        (FineTune, {"weight_decay": math.inf}),
        (GradientAscent, {"ceiling": 0.0}),
        (NegGradPlus, {"forget_weight": 1.5}),
        (NegGradPlus, {"ceiling": -1.0}),
        (RandomLabels, {"schedule": "at once"}),
        (RandomLabels, {"labels": 1.0}),
        (SalUn, {"share": 0.0}),
        (LabelFlipping, {"share": 2}),
        (SCRUB, {"ascent_epochs": 11}),
        (SCRUB, {"alpha": -1}),
        (SCRUB, {"temperature": 0}),
        (BadTeacher, {"retain_share": 0}),
        (BadTeacher, {"temperature": "1"}),
        (Sparse, {"gamma": -1}),
        (Sparse, {"prune": 1.5}),
    ],
)
def test_arguments_out_of_range_are_refused(kind: type[DescentMethod], arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        kind(**arguments)
