"""The certificate of a certified head: its bound holds when measured, and its noise is calibrated, fresh and secret."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import kstest

from lightning_s3t.core.floor import PRETRAINED, CertifiedPart, FloorPart
from lightning_s3t.core.guarantees import CERTIFIED_HEAD, Certificate
from lightning_s3t.core.receipts import receipt_schema
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.store import Receipt, RequestRecord, Store
from lightning_s3t.store.heads.certified import (
    LogisticLoss,
    largest_distance,
    noise_ratio,
    publish,
    secret_noise,
    solve,
)
from lightning_s3t.store.heads.feature_sums import FeatureRows
from lightning_s3t.store.heads.floor import load_published
from tests.store.backups import back_up, restore
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import PEOPLE, SETTINGS, session
from tests.tiers import in_tier

PART = FloorPart(layer="head", width=6, outputs=3, bits=8, target_step=1.0)
CERTIFIED = CertifiedPart(epsilon=1.0, delta=1e-5, l2=1e-2, noise=1e-3)
OWNERS = [person for person in PEOPLE[:30] for _ in range(4)]
METHOD = {
    "name": "certified_head",
    "guarantee": "certified",
    "response": "subtract",
    "certified": CERTIFIED.model_dump(),
}


def rows_of(count: int, seed: int = 0) -> FeatureRows:
    """Rows whose classes depend on their features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centres = torch.randn(3, PART.width, generator=torch.Generator().manual_seed(1)) * 30
    features = centres[labels] + torch.randn(count, PART.width, generator=generator) * 25
    return FeatureRows(features.round().clamp(-127, 127).to(torch.int8), labels.int())


ROWS = rows_of(len(OWNERS))


def without(rows: FeatureRows, *people: str) -> FeatureRows:
    kept = [row for row, owner in enumerate(OWNERS) if owner not in people]
    return FeatureRows(rows.features[kept], rows.targets[kept])


def minimum(rows: FeatureRows, l2: float = CERTIFIED.l2) -> tuple[torch.Tensor, float]:
    """The minimum of the loss as it is written in books, found by another optimizer, and how far off it may be."""
    x = torch.cat([rows.features.double() * (4 / 127) / math.sqrt(PART.width), torch.ones(len(rows), 1)], dim=1)
    y = torch.nn.functional.one_hot(rows.targets.long(), 3).double()
    theta = torch.zeros(3, PART.width + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], 1.0, 200, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        rows_loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ theta.T, y, reduction="sum")
        found = rows_loss + l2 * len(rows) / 2 * theta.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    loss()
    assert theta.grad is not None
    return theta.detach(), float(theta.grad.norm()) / (l2 * len(rows))


def from_minimum(theta: torch.Tensor, rows: FeatureRows, l2: float = CERTIFIED.l2) -> float:
    """How far parameters are from the minimum, at least."""
    found, off = minimum(rows, l2)
    assert off < 1e-4
    return float((theta - found).norm()) - off


# the bound


@settings(deadline=None, max_examples=in_tier(4, 100))
@given(st.integers(5, 80), st.integers(0, 99), st.sampled_from([1e-3, 1e-2, 1.0]), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_parameters_are_as_near_to_the_minimum_as_they_claim(rows: int, seed: int, l2: float, noise: float) -> None:
    certified = CERTIFIED.model_copy(update={"l2": l2, "noise": noise})
    data = rows_of(rows, seed)
    found = solve(data, PART, "multiclass", certified)
    assert found is not None
    assert from_minimum(found.theta, data, l2) <= found.distance
    assert found.distance <= largest_distance(certified)


def test_after_many_requests_the_bound_still_holds() -> None:
    left, theta = ROWS, None
    for count in range(10):
        left = without(ROWS, *PEOPLE[: 2 * count])
        found = solve(left, PART, "multiclass", CERTIFIED, theta)
        assert found is not None
        assert from_minimum(found.theta, left) <= found.distance
        assert found.distance <= largest_distance(CERTIFIED)
        theta = publish(found, CERTIFIED)


def test_the_gradient_is_that_of_the_loss() -> None:
    loss = LogisticLoss(ROWS, PART, "multiclass", CERTIFIED.l2)
    theta, off = minimum(ROWS)
    assert float(loss.gradient(theta).norm()) == pytest.approx(off * loss.convexity, rel=0.1, abs=1e-10)


def test_two_ways_to_the_same_rows_are_at_most_the_hidden_distance_apart() -> None:
    everyone, left = solve(ROWS, PART, "multiclass", CERTIFIED), without(ROWS, PEOPLE[0], PEOPLE[1])
    assert everyone is not None
    after = solve(left, PART, "multiclass", CERTIFIED, publish(everyone, CERTIFIED))
    scratch = solve(left, PART, "multiclass", CERTIFIED)
    assert after is not None
    assert scratch is not None
    hidden = CERTIFIED.noise / noise_ratio(CERTIFIED.epsilon, CERTIFIED.delta)
    assert 0 < float((after.theta - scratch.theta).norm()) <= hidden
    assert float((everyone.theta - scratch.theta).norm()) > 10 * hidden  # without the step it would not be hidden


def test_one_newton_step_is_enough_or_more_follow() -> None:
    rows = rows_of(2000)
    before = solve(rows, PART, "multiclass", CERTIFIED)
    assert before is not None
    fewer = FeatureRows(rows.features[4:], rows.targets[4:])
    start = publish(before, CERTIFIED)
    assert [
        found.steps
        for noise in (1e-3, 1e-8)
        if (found := solve(fewer, PART, "multiclass", CERTIFIED.model_copy(update={"noise": noise}), start))
    ] == [1, 2]


@pytest.mark.parametrize("changed", [{"noise": 1e-15}, {"l2": 1e-30}])
def test_noise_or_a_penalty_that_rounding_errors_exceed_has_no_solution(changed: dict[str, float]) -> None:
    assert solve(rows_of(3), PART, "multiclass", CERTIFIED.model_copy(update=changed)) is None


def test_the_same_start_and_rows_give_the_same_bits_before_the_noise() -> None:
    first, second = (solve(ROWS, PART, "multiclass", CERTIFIED) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.theta.equal(second.theta)


# the noise


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-6), (4.0, 1e-3), (20.0, 1e-9)])
def test_the_noise_hides_a_distance_of_one_and_not_more_than_it_has_to(epsilon: float, delta: float) -> None:
    def missed(ratio: float) -> float:
        a, b = 0.5 / ratio - epsilon * ratio, -0.5 / ratio - epsilon * ratio
        return float(ndtr(a)) - math.exp(epsilon) * float(ndtr(b))

    ratio = noise_ratio(epsilon, delta)
    assert missed(ratio) <= delta * (1 + 1e-6)
    assert missed(0.999 * ratio) > delta
    if epsilon <= 1:
        assert ratio < math.sqrt(2 * math.log(1.25 / delta)) / epsilon  # the classical bound is looser


def test_the_noise_is_normal_and_has_the_calibrated_scale() -> None:
    found = solve(ROWS, PART, "multiclass", CERTIFIED)
    assert found is not None
    drawn = torch.cat([(publish(found, CERTIFIED) - found.theta).flatten() for _ in range(500)])
    assert float(drawn.std()) == pytest.approx(CERTIFIED.noise, rel=0.05)
    assert kstest(drawn / CERTIFIED.noise, "norm").pvalue > 1e-6


def test_no_seed_leads_to_the_noise() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(secret_noise((2, 3)))
    assert not drawn[0].equal(drawn[1])


# in a store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certified") / "store"
    with Store.create(path, {**SETTINGS, "method": METHOD}) as store:
        building = session(store)
        building.register(PEOPLE)
        building.add_features(PRETRAINED, PART, "multiclass", ROWS, OWNERS, [b""] * len(OWNERS))
        assert not store.heads()[PRETRAINED].serves
        building.complete_head(PRETRAINED)
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def published(store: Store) -> torch.Tensor:
    return load_published(store._backend, store.heads()[PRETRAINED])


def forget(store: Store, *people: str) -> RequestRecord:
    found = store.forget(people)
    assert isinstance(found, RequestRecord)
    return found


def test_a_request_publishes_another_head_and_erases_the_one_before(path: Path) -> None:
    with Store.open(path) as store:
        before = store.heads()[PRETRAINED]
        receipt = forget(store, PEOPLE[0], PEOPLE[1])
        after = store.heads()[PRETRAINED]
        assert after.serves
        assert after.published != before.published
        assert not store._backend.snapshots.is_whole(before.published)
        assert (receipt.subtracted_rows, receipt.erased_files) == (8, 2)  # of the head, and the sums
        assert from_minimum(published(store), without(ROWS, PEOPLE[0], PEOPLE[1])) < 10 * CERTIFIED.noise
        assert store.verify().problems == ()


def test_every_receipt_has_the_certificate(path: Path) -> None:
    with Store.open(path) as store:
        receipt = forget(store, PEOPLE[0]).receipt
    assert receipt.certificate == Certificate(1.0, 1e-5, CERTIFIED_HEAD)
    assert receipt.promise == "certified (epsilon 1, delta 1e-05)"
    assert Receipt.from_json(receipt.to_json()) == receipt
    jsonschema.validate(json.loads(receipt.to_json()), receipt_schema())
    with Store.open(path) as store:
        assert store.receipts()[0].receipt == receipt
        assert store.has_given(receipt)


def test_a_fit_that_changes_nothing_publishes_nothing(path: Path) -> None:
    with Store.open(path) as store:
        before = store.heads()
        building = session(store)
        assert not building.find_stale_features(PRETRAINED, OWNERS, [b""] * len(OWNERS))
        building.complete_head(PRETRAINED)
        assert store.heads() == before  # another sample would tell more about the same rows


def test_two_stores_with_the_same_seed_and_rows_have_other_noise(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "other")
    found = []
    for each in (path, tmp_path / "other"):
        with Store.open(each) as store:
            forget(store, PEOPLE[0])
            found.append(published(store))
    assert 0 < float((found[0] - found[1]).norm()) < 20 * CERTIFIED.noise


def test_a_head_of_nobody_does_not_serve(path: Path) -> None:
    with Store.open(path) as store:
        forget(store, *PEOPLE[:30])
        state = store.heads()[PRETRAINED]
        assert (state.rows, state.published, state.serves) == (0, "", False)
        assert store.load_serving_head() is None
        assert store.verify().problems == ()


def test_a_damaged_head_is_told_and_published_again(path: Path) -> None:
    with Store.open(path) as store:
        before = store.heads()[PRETRAINED].published
        (path / "snapshots" / f"{before}.safetensors").write_bytes(b"damaged")
        assert any("certified head is damaged" in problem for problem in store.verify().problems)
        session(store).find_stale_features(PRETRAINED, OWNERS, [b""] * len(OWNERS))
        assert store.heads()[PRETRAINED].published not in ("", before)
        assert store.verify().problems == ()


def test_a_restored_backup_publishes_a_head_without_the_forgotten(path: Path, tmp_path: Path) -> None:
    back_up(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        before = store.heads()[PRETRAINED].published
        forget(store, PEOPLE[0])
        assert store.drill(tmp_path / "backup.db").passed
    restore(path, tmp_path / "backup.db")
    with Store.open(path) as store:
        assert store.heads()[PRETRAINED].published != before
        assert from_minimum(published(store), without(ROWS, PEOPLE[0])) < 10 * CERTIFIED.noise
        assert store.verify().problems == ()


@pytest.mark.nightly
def test_a_request_that_is_killed_anywhere_is_whole_or_has_not_been(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(made) as store:
        before = store.heads()[PRETRAINED].published

    def work() -> Iterator[str]:
        with Store.open(path) as store:
            store.forget([PEOPLE[0]])
            yield "done"

    for fatal in itertools.count(1):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(made, path)
        acknowledged, survived = acknowledged_until_killed(work, fatal)
        with Store.open(path) as store:
            is_gone = bool(store.forgotten([PEOPLE[0]]))
            assert is_gone or not acknowledged
            assert (store.heads()[PRETRAINED].published != before) == is_gone
            assert store._backend.snapshots.is_whole(before) != is_gone
            assert from_minimum(published(store), without(ROWS, *[PEOPLE[0]] * is_gone)) < 10 * CERTIFIED.noise
            assert store.verify().passed, f"killed before change {fatal}: {store.verify().problems}"
        if survived:
            break
    assert fatal > 5


def test_a_fit_whose_noise_is_too_small_is_refused(tmp_path: Path) -> None:
    method = {**METHOD, "certified": {**CERTIFIED.model_dump(), "noise": 1e-15}}
    with Store.create(tmp_path / "store", {**SETTINGS, "method": method}) as store:
        building = session(store)
        building.register(PEOPLE)
        building.add_features(PRETRAINED, PART, "multiclass", ROWS, OWNERS, [b""] * len(OWNERS))
        with pytest.raises(UnsupportedError, match="cannot be solved accurately enough for its noise"):
            building.complete_head(PRETRAINED)
        assert not store.heads()[PRETRAINED].serves
