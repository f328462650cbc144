"""The floor, end to end: what answers when deletions have left no unit, bit for bit free of those who asked."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_s3t import EnsembleModule, Floor, Store
from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.errors import DataError, NoSurvivorError, RevokedError, StoreMismatchError, UnsupportedError
from lightning_s3t.methods import SISA, ClosedForm
from lightning_s3t.serving.closed_form_heads import RidgeLayer
from lightning_s3t.store.heads.feature_sums import FeatureRows
from lightning_s3t.tuning.head_features import HeadFeatures
from lightning_s3t.tuning.ridge import solve_head
from tests.end_to_end.everything import forget
from tests.people import CLASSES, FEATURES, Classifier, People, PeopleData, fit, make_trainer
from tests.store.people_store import session

PERSON = "user-3"
EVERYONE = [f"user-{number}" for number in range(40)]
TEST = People.make(30, seed=6)


def fit_with_floor(store: Path, people: People, **arguments: Any) -> Path:
    fit(store, people, epochs=1, **{"floor": True, **arguments})
    return store


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a floor, for copying only."""
    return fit_with_floor(tmp_path_factory.mktemp("floor") / "store", People.make())


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def answers(store: Path, x: Tensor = TEST.features) -> Tensor:
    """What the floor answers, once deletions have left nothing else."""
    with EnsembleModule.from_store(store, Classifier()) as served:
        assert not served.survivors
        return served(x).detach()


def sums(store: Path, source: str = PRETRAINED) -> dict[str, list[Any]]:
    with Store.open(store) as opened:
        found = opened.load_head(source)
    assert found is not None
    return {name: tensor.tolist() for name, tensor in found.to_tensors().items()}


def sources(store: Path) -> set[str]:
    with Store.open(store) as opened:
        return {source for source, head in opened.heads().items() if head.complete}


def forget_by_all(store: Path) -> None:
    """Take every unit away, and leave the floor its other rows: a person in each first slice asks."""
    with Store.open(store) as opened:
        for person in EVERYONE:
            if not opened.alive():
                return
            if person != PERSON:
                opened.forget([person])


def test_it_answers_when_no_unit_is_left_and_after_every_request(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        for person in EVERYONE[:30]:
            served.forget([person])
            accuracy = float((served(TEST.features).argmax(-1) == TEST.labels).float().mean())
        assert not served.survivors
        assert accuracy > 0.8
        assert served.store.verify().passed


@pytest.mark.nightly
def test_it_answers_for_sisa_too_when_no_state_is_left(store: Path, tmp_path: Path) -> None:
    other = fit_with_floor(tmp_path / "sisa" / "store", People.make(), method=SISA(shards=2, slices=2))
    assert sums(store) == sums(other)
    for each in (store, other):
        forget_by_all(each)
        forget(each, *EVERYONE[:30])
    assert answers(store).equal(answers(other))


def test_the_floor_is_what_it_would_be_had_the_persons_rows_been_anything_else(store: Path, tmp_path: Path) -> None:
    other = fit_with_floor(tmp_path / "other" / "store", People.make().replaced(PERSON))
    assert sums(store) != sums(other)
    for each in (store, other):
        forget(each, PERSON)
    assert sums(store) == sums(other)
    for each in (store, other):
        forget_by_all(each)
    assert answers(store).equal(answers(other))


def test_a_floor_that_has_forgotten_is_that_of_a_first_fit_without_the_person(store: Path, tmp_path: Path) -> None:
    forget(store, PERSON)
    scratch = fit_with_floor(tmp_path / "scratch" / "store", People.make().without(PERSON))
    assert sums(store) == sums(scratch)
    fit_with_floor(store, People.make())
    assert sums(store) == sums(scratch)
    for each in (store, scratch):
        forget_by_all(each)
    assert answers(store).equal(answers(scratch))


def test_requests_until_nine_tenths_are_gone_leave_what_a_first_fit_without_them_makes(
    store: Path, tmp_path: Path
) -> None:
    gone = EVERYONE[:36]
    for start, end in ((0, 1), (1, 10), (10, 36)):
        forget(store, *gone[start:end])
    scratch = fit_with_floor(tmp_path / "scratch" / "store", People.make().without(*gone), shards=1, slices=1, budget=1)
    assert sums(store) == sums(scratch)


def test_new_people_are_added_and_those_who_left_the_data_are_taken_out(store: Path, tmp_path: Path) -> None:
    people, others = People.make().without("user-7"), People.make(4, seed=1)
    more = People(
        torch.cat([people.features, others.features]),
        torch.cat([people.labels, others.labels]),
        [*people.owners, *(f"new-{owner}" for owner in others.owners)],
    )
    fit_with_floor(store, more)
    assert sums(store) == sums(fit_with_floor(tmp_path / "scratch" / "store", more))


@pytest.mark.nightly
def test_a_floor_can_be_added_to_a_store_that_has_none(tmp_path: Path, trained: Path) -> None:
    store = tmp_path / "store"
    fit(store, People.make(), epochs=1)
    with Store.open(store) as opened:
        assert not opened.heads()
    fit_with_floor(store, People.make())
    assert sums(store) == sums(trained)


def test_a_fit_with_another_floor_is_refused(store: Path) -> None:
    with pytest.raises(StoreMismatchError, match="bits"):
        fit_with_floor(store, People.make(), floor=Floor(bits=6))


def test_a_floor_without_rows_is_not_said_to_be_missing(store: Path) -> None:
    forget(store, *EVERYONE)
    with (
        EnsembleModule.from_store(store, Classifier()) as served,
        pytest.raises(NoSurvivorError, match="no floor has rows left"),
    ):
        served(TEST.features)


def test_a_fit_when_everyone_is_forgotten_says_that_nothing_can_serve(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget(store, *EVERYONE)
    with caplog.at_level(logging.INFO):
        fit_with_floor(store, People.make())
    assert "no rows are left to train units on" in caplog.text
    assert "nothing that can serve is in" in caplog.text


def test_without_a_floor_nothing_answers_when_nothing_is_left(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), epochs=1)
    forget(tmp_path / "store", *EVERYONE)
    with (
        EnsembleModule.from_store(tmp_path / "store", Classifier()) as served,
        pytest.raises(NoSurvivorError, match=r"S3T\(floor=True\)"),
    ):
        served(TEST.features)


@pytest.mark.nightly
def test_the_answer_of_a_row_does_not_depend_on_the_data_loaders_workers(store: Path, tmp_path: Path) -> None:
    assert sums(fit_with_floor(tmp_path / "other" / "store", People.make(), workers=2)) == sums(store)


@pytest.mark.nightly
@pytest.mark.parametrize(("layers", "votes"), [(0, 2), (2, 4)])
def test_it_has_two_or_four_votes_for_each_of_all_shards_together(
    trained: Path, trained_with_layers: Path, tmp_path: Path, layers: int, votes: int
) -> None:
    without = tmp_path / "without"
    fit(without, People.make(), epochs=1)
    with EnsembleModule.from_store(without, Classifier()) as served:
        shards = served(TEST.features).detach()
    floor: list[Tensor] = []
    with EnsembleModule.from_store(trained_with_layers if layers else trained, Classifier()) as served:
        (head,) = (module for module in served.modules() if isinstance(module, RidgeLayer))
        head.register_forward_hook(lambda *call: floor.append(call[-1].detach()))
        both = served(TEST.features).detach()
    torch.testing.assert_close(both, (shards + votes * floor[-1]) / (1 + votes))


def test_a_single_survivor_answers_without_the_floor(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier(), aggregate="single") as single:
        alone = single(TEST.features).detach()
        single.aggregate = "mean_logits"
        assert not torch.allclose(alone, single(TEST.features))


def test_rows_that_are_corrected_after_a_fit_has_loaded_them_stay_out(tmp_path: Path) -> None:
    class Corrected(PeopleData):
        """A person's data is corrected elsewhere while the fit begins."""

        def train_dataloader(self) -> DataLoader[Any]:
            with Store.open(tmp_path / "store") as opened:
                if not opened.request_number:
                    opened.rectify([PERSON])
            return super().train_dataloader()

    fit(tmp_path / "store", People.make(), method=ClosedForm())
    make_trainer(tmp_path / "store", method=ClosedForm()).fit(Classifier(), datamodule=Corrected(People.make()))
    with Store.open(tmp_path / "store") as opened:
        assert opened.request_number == 1
        assert opened.preview([PERSON]).subtracted_rows == 0
        assert opened.heads()[PRETRAINED].rows == 117


def test_a_model_that_first_answers_after_a_fit_forgets_what_the_fit_has_added(store: Path) -> None:
    forget_by_all(store)
    with EnsembleModule.from_store(store, Classifier()) as served, Store.open(store) as opened:
        state, before = opened.heads()[PRETRAINED], answers(store)
        late = FeatureRows(torch.full((50, state.part.width), 127).to(torch.int8), torch.zeros(50).int())
        with opened.building() as building:
            building.register(["late"])
            building.add_features(PRETRAINED, state.part, state.task, late, ["late"] * 50, [b""] * 50)
        assert not torch.allclose(served(TEST.features), before)
        opened.forget(["late"])
        assert opened.heads()[PRETRAINED].digest == state.digest  # sums forget bit for bit
        assert served(TEST.features).equal(before)


def test_a_head_from_before_a_request_is_overwritten_when_the_model_learns_of_it(store: Path) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served:
        served(TEST.features)
        (layer,) = [module for module in served.modules() if isinstance(module, RidgeLayer)]
        assert bool(layer.weight.any())
        served.forget([PERSON])
        assert not bool(layer.weight.any())
        served(TEST.features)
        assert bool(layer.weight.any())


def test_a_unit_that_a_fit_replaces_while_it_is_loaded_is_loaded_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EnsembleModule.from_store(store, Classifier()) as served, Store.open(store) as other:
        unit = served.survivors[1]
        tensors, provenance = other.load(unit), other.provenance(unit)[0]

        def commit(factor: float) -> None:
            changed = {name: tensor * factor for name, tensor in tensors.items()}
            session(other).start_unit(unit, "key").commit(changed, provenance, None)

        commit(2.0)
        looked = served.store.candidates()
        commit(3.0)  # between the look and the load
        with monkeypatch.context() as patched, suppress(RevokedError):
            patched.setattr(served.store, "candidates", lambda: looked)
            served._load_survivors()
        commit(2.0)
        served.refresh()
        with EnsembleModule.from_store(store, Classifier()) as fresh:
            assert served(TEST.features).equal(fresh(TEST.features))


def test_with_a_floor_alone_there_is_nothing_to_export(store: Path, tmp_path: Path) -> None:
    forget_by_all(store)
    with (
        EnsembleModule.from_store(store, Classifier()) as served,
        pytest.raises(NoSurvivorError, match="only the floor"),
    ):
        served.export(tmp_path / "away.safetensors")


# a floor that reads several layers

LAYERED = Floor(layers=2, width=24)


@pytest.fixture(scope="module")
def trained_with_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose floor reads two layer groups, for copying only."""
    return fit_with_floor(tmp_path_factory.mktemp("layers") / "store", People.make(), floor=LAYERED)


@pytest.fixture
def layered(trained_with_layers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_with_layers, tmp_path / "layered" / "store"))


def test_a_floor_of_several_layers_is_that_of_a_first_fit_without_the_person(layered: Path, tmp_path: Path) -> None:
    forget(layered, PERSON)
    scratch = fit_with_floor(tmp_path / "scratch" / "store", People.make().without(PERSON), floor=LAYERED)
    assert sums(layered) == sums(scratch)
    fit_with_floor(layered, People.make(), floor=LAYERED)
    for each in (layered, scratch):
        forget_by_all(each)
    assert answers(layered).equal(answers(scratch))


@pytest.mark.parametrize("passes", ["sequential", "batched"])
def test_a_floor_of_several_layers_answers_beside_the_shards_as_it_does_alone(layered: Path, passes: Any) -> None:
    with EnsembleModule.from_store(layered, Classifier(), passes=passes) as served:
        whole = served(TEST.features).detach()
        again = served(TEST.features).detach()  # in a pass that shares its trunk, or of all shards' rows
        by_row = torch.cat([served(TEST.features[row : row + 1]).detach() for row in range(3)])
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(by_row, whole[:3], rtol=1e-4, atol=1e-4)


def test_a_floor_of_several_layers_answers_from_what_the_pretrained_network_computes(layered: Path) -> None:
    forget_by_all(layered)
    module, found = Classifier().eval(), list[Tensor]()
    with Store.open(layered) as opened:
        part, kept = opened.heads()[PRETRAINED].part, opened.load_head()
    assert kept is not None
    features = HeadFeatures(module, "network", part)
    module.network.head.register_forward_pre_hook(lambda _, args: found.append(features.of(args[0])))
    features.attach()
    with torch.no_grad():
        module(TEST.features)
    assert found[0].shape == (len(TEST), 24)
    torch.testing.assert_close(answers(layered), solve_head(kept)(found[0]))


def test_a_floor_of_other_layers_is_refused(layered: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"floor\.layers"):
        fit_with_floor(layered, People.make(), floor=Floor(layers=1, width=24))


# heads on survivors

ON_SURVIVORS = Floor(survivors=True)


@pytest.fixture(scope="module")
def trained_with_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with heads on survivors, for copying only."""
    return fit_with_floor(tmp_path_factory.mktemp("heads") / "store", People.make(), floor=ON_SURVIVORS)


@pytest.fixture
def headed(trained_with_heads: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_with_heads, tmp_path / "headed" / "store"))


def served_units(store: Path) -> dict[int, str]:
    with Store.open(store) as opened:
        return {shard: str(unit) for shard, unit in opened.status().serving.items()}


def test_each_unit_that_serves_has_a_head_from_the_rows_that_it_has_not_seen(headed: Path) -> None:
    serving = served_units(headed)
    assert sources(headed) == {PRETRAINED, *serving.values()}
    with Store.open(headed) as opened:
        places = {person: opened.partition.place(person) for person in EVERYONE}
        rows = {shard: opened.heads()[unit].rows for shard, unit in serving.items()}
    people = People.make()
    for shard, count in rows.items():
        assert count == sum(places[owner].shard != shard for owner in people.owners)


def test_the_heads_answer_beside_those_that_the_units_were_trained_with(headed: Path, store: Path) -> None:
    with EnsembleModule.from_store(headed, Classifier()) as served:
        with_heads = served(TEST.features).detach()
        assert float((with_heads.argmax(-1) == TEST.labels).float().mean()) > 0.8
    with EnsembleModule.from_store(store, Classifier()) as served:
        assert not torch.allclose(with_heads, served(TEST.features))


def test_a_request_takes_the_heads_along_that_it_reaches_and_is_subtracted_from_the_others(
    headed: Path, tmp_path: Path
) -> None:
    before = served_units(headed)
    other = fit_with_floor(tmp_path / "other" / "store", People.make().replaced(PERSON), floor=ON_SURVIVORS)
    for each in (headed, other):
        forget(each, PERSON)
    reached = {shard for shard, unit in before.items() if served_units(headed).get(shard) != unit}
    assert len(reached) == 1
    left = {unit for shard, unit in before.items() if shard not in reached}
    assert sources(headed) == {PRETRAINED, *left}
    for source in sources(headed):
        assert sums(headed, source) == sums(other, source)
    with EnsembleModule.from_store(headed, Classifier()) as one, EnsembleModule.from_store(other, Classifier()) as two:
        assert one(TEST.features).equal(two(TEST.features))
        assert one.store.verify().passed


def test_a_fit_after_a_request_gives_the_heads_of_a_first_fit_without_the_person(headed: Path, tmp_path: Path) -> None:
    forget(headed, PERSON)
    fit_with_floor(headed, People.make(), floor=ON_SURVIVORS)
    scratch = fit_with_floor(tmp_path / "scratch" / "store", People.make().without(PERSON), floor=ON_SURVIVORS)
    assert sources(headed) == sources(scratch)
    for source in sources(headed):
        assert sums(headed, source) == sums(scratch, source)
    with (
        EnsembleModule.from_store(headed, Classifier()) as one,
        EnsembleModule.from_store(scratch, Classifier()) as two,
    ):
        assert one(TEST.features).equal(two(TEST.features))


def test_a_model_that_serves_drops_a_head_at_the_next_answer(headed: Path) -> None:
    with EnsembleModule.from_store(headed, Classifier()) as served:
        served(TEST.features)
        forget(headed, PERSON)
        after = served(TEST.features).detach()
    with EnsembleModule.from_store(headed, Classifier()) as served:
        assert after.equal(served(TEST.features))


@pytest.mark.nightly
def test_a_model_that_serves_takes_up_the_heads_of_a_new_fit(headed: Path) -> None:
    with EnsembleModule.from_store(headed, Classifier()) as served:
        served(TEST.features)
        forget(headed, PERSON)
        fit_with_floor(headed, People.make(), floor=ON_SURVIVORS)
        after = served(TEST.features).detach()
    with EnsembleModule.from_store(headed, Classifier()) as served:
        assert after.equal(served(TEST.features))


def test_a_restriction_takes_the_heads_along_too(headed: Path) -> None:
    before = served_units(headed)
    with Store.open(headed) as opened:
        opened.restrict([PERSON])
    assert sources(headed) < {PRETRAINED, *before.values()}


@pytest.mark.nightly
def test_one_shard_has_no_other_rows_to_learn_from_but_those_of_later_slices(tmp_path: Path) -> None:
    store = fit_with_floor(tmp_path / "store", People.make(), shards=1, slices=2, floor=ON_SURVIVORS)
    assert sources(store) == {PRETRAINED}


# what it learns from


class OneOutput(Classifier):
    """A head with one output, for numbers or for yes and no."""

    def __init__(self, depth: int = 4, learning_rate: float = 0.02) -> None:
        super().__init__(depth, learning_rate)
        with torch.random.fork_rng():
            torch.manual_seed(12)
            self.network.head = nn.Linear(16, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.network(batch["x"])[:, 0], batch["wanted"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Numbers(TensorDataset):
    def __init__(self) -> None:
        people = People.make()
        super().__init__(people.features, people.features[:, 0].tanh())
        self.owners = people.owners

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        x, wanted = super().__getitem__(row)
        return {"x": x, "wanted": wanted}


def fit_numbers(store: Path, floor: Floor) -> None:
    make_trainer(store, epochs=1, floor=floor).fit(OneOutput(), DataLoader(Numbers(), 8))


@pytest.mark.nightly
def test_a_regression_answers_with_numbers(tmp_path: Path) -> None:
    fit_numbers(tmp_path / "store", Floor(targets="wanted", task="regression"))
    forget(tmp_path / "store", *EVERYONE[:30])
    with EnsembleModule.from_store(tmp_path / "store", OneOutput()) as served:
        assert not served.survivors
        found, wanted = served(TEST.features)[:, 0], TEST.features[:, 0].tanh()
    assert float((found - wanted).square().mean()) < 0.5 * float(wanted.var())


def test_targets_that_are_not_found_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tensor of targets.*`targets` of Floor or ClosedForm"):
        fit_numbers(tmp_path / "store", Floor())


def test_a_task_that_the_targets_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"does not determine the task. Set `task` of Floor or ClosedForm to 'binary' or 'regression'"
    ):
        fit_numbers(tmp_path / "store", Floor(targets="wanted"))


class TwoLooks(Classifier):
    """A step that calls the network twice for a batch."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0 * self.network(batch[0]).sum()


def test_a_step_that_calls_the_network_twice_has_no_floor(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"This model cannot have a closed-form head.*Leave `floor` out"):
        fit(tmp_path / "store", People.make(), module=TwoLooks(), epochs=1, floor=True)


def test_a_head_that_is_not_linear_has_no_floor_and_nothing_is_made(tmp_path: Path) -> None:
    module = Classifier()
    module.network.head = nn.Sequential(nn.Linear(16, CLASSES), nn.LayerNorm(CLASSES))
    with pytest.raises(UnsupportedError, match="ends in LayerNorm"):
        fit(tmp_path / "store", People.make(), module=module, epochs=1, floor=True)
    assert not (tmp_path / "store").exists()


def test_a_floor_needs_a_process_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="isolation='none'"):
        fit(tmp_path / "store", People.make(), epochs=1, floor=True, isolation="none")


@pytest.mark.nightly
def test_rows_that_change_under_the_same_ids_are_read_again(tmp_path: Path) -> None:
    changed = People.make().replaced(PERSON)
    store = fit_with_floor(tmp_path / "store", People.make(), digest_rows=True)
    fit_with_floor(store, changed, digest_rows=True)
    scratch = fit_with_floor(tmp_path / "scratch" / "store", changed, digest_rows=True)
    assert sums(store) == sums(scratch)


@pytest.mark.nightly
def test_a_random_augmentation_of_a_row_is_the_same_whoever_else_is_there(tmp_path: Path) -> None:
    class Augmented(People):
        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            x, y = super().__getitem__(row)
            return x + torch.randn(FEATURES), y

    def make(folder: Path, *without: str) -> Path:
        people = People.make().without(*without)
        augmented = Augmented(people.features, people.labels, people.owners)
        make_trainer(folder / "store", epochs=1, floor=True).fit(Classifier(), datamodule=PeopleData(augmented))
        return folder / "store"

    store, scratch = make(tmp_path / "a"), make(tmp_path / "b", PERSON)
    forget(store, PERSON)
    assert sums(store) == sums(scratch)
