"""What every unlearning method has to keep, whatever it does: one file of tests for all of them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_s3t import EnsembleModule
from lightning_s3t.core.tickets import Ticket
from lightning_s3t.errors import (
    ConfigurationError,
    StoreMismatchError,
    UnknownSubjectError,
    UnsupportedError,
    WorkerError,
)
from lightning_s3t.methods import (
    ASSD,
    LFSSD,
    METHODS,
    PGU,
    SCRUB,
    SISA,
    SSD,
    Amnesiac,
    BadTeacher,
    CertifiedHead,
    ClosedForm,
    EditingMethod,
    EditSession,
    FineTune,
    GradientAscent,
    Influence,
    LabelFlipping,
    NegGradPlus,
    RandomLabels,
    Retrain,
    S3TMethod,
    SalUn,
    Sparse,
    UnlearningMethod,
    method_of,
    register_method,
)
from lightning_s3t.store import Receipt, Store
from tests.people import Classifier, People, PeopleData, assert_bitwise_equal, fit, make_trainer
from tests.tiers import nightly_except

EXAMPLES: dict[str, UnlearningMethod] = {
    "s3t": S3TMethod(shards=2, slices=2, budget=2),
    "sisa": SISA(shards=2, slices=2),
    "retrain": Retrain(),
    "closed_form": ClosedForm(),
    "certified_head": CertifiedHead(),
    "ssd": SSD(alpha=1.5, batch_size=8),
    "assd": ASSD(batch_size=8),
    "lfssd": LFSSD(alpha=1.1, batch_size=8),
    "fine_tune": FineTune(epochs=1),
    "gradient_ascent": GradientAscent(epochs=2, learning_rate=0.01),
    "neg_grad_plus": NegGradPlus(epochs=1),
    "random_labels": RandomLabels(epochs=1),
    "salun": SalUn(epochs=1),
    "label_flipping": LabelFlipping(epochs=2),
    "scrub": SCRUB(epochs=1, ascent_epochs=1),
    "bad_teacher": BadTeacher(),
    "sparse": Sparse(epochs=1, prune=0.1),
    "pgu": PGU(epochs=2),
    "amnesiac": Amnesiac(max_share=1.0),
    "influence": Influence(damping=1.0, iterations=3),
}
EXACT = [name for name, method in EXAMPLES.items() if method.guarantee == "exact"]
REPLACING = [name for name, method in EXAMPLES.items() if method.response == "replace"]
EDITING = [name for name, method in EXAMPLES.items() if isinstance(method, EditingMethod)]
# all edits take the same way through fit and store: one of them goes it for every change, all of them every night
EVERY = nightly_except(EXAMPLES, "s3t", "sisa", "retrain", "closed_form", "certified_head", "ssd")
EVERY_REPLACING = nightly_except(REPLACING, "retrain", "ssd")
ARGUMENTS: dict[str, Any] = {"adapter": None}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a store of each method is kept, fitted on everyone when it is first asked for, for copying only."""
    return tmp_path_factory.mktemp("methods")


@pytest.fixture
def store(stores: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a method's store; named by the parameter."""
    name = str(request.param)
    if not (stores / name).exists():
        fit(stores / name, People.make(), method=EXAMPLES[name], **ARGUMENTS)
    shutil.copytree(stores / name, tmp_path / name)
    return tmp_path / name


def forget(store: Path, *people: str) -> Receipt | Ticket:
    with Store.open(store) as opened:
        return opened.forget(people)


def refit(store: Path, people: People) -> None:
    fit(store, people, method=EXAMPLES[store.name], **ARGUMENTS)


def receipts(store: Path) -> list[Receipt]:
    with Store.open(store) as opened:
        return opened.receipts()


def tensors_of(store: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that can serve: the tensors of units, and the sums of closed-form heads."""
    with Store.open(store) as opened:
        heads = {source: opened.load_head(source) for source, head in opened.heads().items() if head.serves}
        units = {str(unit): opened.load(unit) for unit in opened.alive()}
    return units | {source: head.to_tensors() for source, head in heads.items() if head is not None}


def test_every_method_is_tested_here() -> None:
    assert set(EXAMPLES) == set(METHODS)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_what_is_forgotten_stays_forgotten_over_requests_and_fits(store: Path) -> None:
    people = People.make()
    for person in ("user-3", "user-8"):
        forget(store, person)
        refit(store, people)
    with Store.open(store) as opened:
        assert opened.forgotten(["user-3", "user-8", "user-9"]) == {"user-3", "user-8"}
        counts = [record.provenance["subjects"] for record in opened.alive().values()]
        counts += [head.rows // 3 for head in opened.heads().values()]  # three rows of each
        assert 0 < max(counts) <= 38


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_every_receipt_has_the_methods_name_and_guarantee(store: Path) -> None:
    forget(store, "user-3")
    refit(store, People.make())
    (receipt,) = receipts(store)
    method = EXAMPLES[store.name]
    assert (receipt.method, receipt.guarantee, receipt.subjects) == (method.name, method.guarantee, 1)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_an_unknown_subject_is_refused_and_nothing_changes(store: Path) -> None:
    before = tensors_of(store)
    with pytest.raises(UnknownSubjectError, match="nobody"):
        forget(store, "nobody")
    with Store.open(store) as opened:
        assert (opened.request_number, opened.pending()) == (0, [])
    assert_bitwise_equal(before, tensors_of(store))


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_another_method_on_the_same_store_is_refused(store: Path) -> None:
    other = Retrain() if store.name != "retrain" else SSD()
    with pytest.raises(StoreMismatchError, match=r"method\.name"):
        fit(store, People.make(), method=other, **ARGUMENTS)


@pytest.mark.parametrize("store", EVERY, indirect=True)
def test_the_script_s_own_module_stays_as_it_is(store: Path) -> None:
    forget(store, "user-3")
    module = Classifier()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fit(store, People.make(), module=module, method=EXAMPLES[store.name], **ARGUMENTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("store", EXACT, indirect=True)
def test_what_an_exact_method_rebuilds_is_a_first_training_without_the_person(store: Path, tmp_path: Path) -> None:
    forget(store, "user-3")
    refit(store, People.make())
    fit(tmp_path / "scratch", People.make().without("user-3"), method=EXAMPLES[store.name], **ARGUMENTS)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_a_request_that_waits_is_a_ticket_and_the_model_serves_on(store: Path) -> None:
    before = tensors_of(store)
    ticket = forget(store, "user-3", "user-8")
    assert isinstance(ticket, Ticket)
    assert (ticket.waiting, ticket.method) == (2, store.name)
    assert_bitwise_equal(before, tensors_of(store))
    with Store.open(store) as opened:
        found = opened.status()
        assert (found.waiting, opened.request_number) == (2, 0)
        assert "2 subjects wait" in str(found.advice)


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_the_fit_that_replaces_carries_all_waiting_requests_out_as_one(store: Path) -> None:
    forget(store, "user-3")
    forget(store, "user-8")
    trainer = make_trainer(store, method=EXAMPLES[store.name], **ARGUMENTS)
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    receipt = trainer.callbacks[0].receipt  # type: ignore[attr-defined]
    assert receipt == receipts(store)[0]
    assert (receipt.subjects, receipt.revoked, receipt.serving) == (2, ("0/0",), {"0": "0/0"})
    assert receipt.erased_files == 1  # the old model
    with Store.open(store) as opened:
        assert (opened.pending(), opened.status().waiting) == ([], 0)
        assert opened.verify().problems == ()


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_a_served_model_swaps_when_the_replacement_is_there(store: Path) -> None:
    x = People.make(10, seed=5).features
    with EnsembleModule.from_store(store, Classifier()) as served:
        served.forget(["user-3"])
        before = served(x)
        refit(store, People.make())
        after = served(x)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_where_the_rows_are_gone_the_model_is_trained_again(store: Path, tmp_path: Path) -> None:
    forget(store, "user-3")
    refit(store, People.make().without("user-3"))
    fit(tmp_path / "scratch", People.make().without("user-3"), method=EXAMPLES[store.name], **ARGUMENTS)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))
    assert len(receipts(store)) == 1


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_a_request_of_somebody_who_was_never_trained_on_keeps_the_model(store: Path) -> None:
    before = tensors_of(store)
    with Store.open(store) as opened:
        opened.forget(["nobody"], strict=False)
    refit(store, People.make())
    assert_bitwise_equal(before, tensors_of(store))
    (receipt,) = receipts(store)
    assert (receipt.unknown, receipt.serving) == (1, {"0": "0/0"})
    with Store.open(store) as opened:
        assert opened.verify().problems == ()


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_where_everybody_asks_nothing_is_left(store: Path) -> None:
    forget(store, *{f"user-{number}" for number in range(40)})
    refit(store, People.make())
    assert tensors_of(store) == {}
    (receipt,) = receipts(store)
    assert (receipt.subjects, receipt.serving) == (40, {"0": None})


@pytest.mark.parametrize("store", nightly_except(EXAMPLES, "retrain"), indirect=True)
def test_a_correction_and_a_fit_give_what_a_first_fit_on_the_corrected_data_gives(store: Path, tmp_path: Path) -> None:
    corrected = People.make().replaced("user-3")
    with Store.open(store) as opened:
        answer = opened.rectify(["user-3"])
        waits = 1 if store.name in REPLACING else 0
        assert isinstance(answer, Ticket) == bool(waits)
        assert (answer.kind, opened.status().corrections) == ("rectify", waits)
    refit(store, corrected)
    fit(tmp_path / "scratch", corrected, method=EXAMPLES[store.name], **ARGUMENTS)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))
    (receipt,) = receipts(store)
    assert (receipt.kind, receipt.subjects) == ("rectify", 1)
    assert receipt.revoked_units + receipt.subtracted_rows > 0
    with Store.open(store) as opened:
        assert opened.status().corrections == 0
        assert opened.verify().problems == ()
    refit(store, corrected)  # and nothing waits any more
    assert len(receipts(store)) == 1


@pytest.mark.parametrize("store", ["retrain"], indirect=True)
def test_corrections_and_deletions_that_wait_are_two_requests_of_one_fit(store: Path, tmp_path: Path) -> None:
    with Store.open(store) as opened:
        opened.rectify(["user-3", "user-5"])
        opened.rectify(["user-3"])
        opened.forget(["user-5", "user-8"])
        assert opened.status().corrections == 2
    corrected = People.make().replaced("user-3")
    refit(store, corrected)
    rectified, forgotten = receipts(store)
    assert (rectified.kind, rectified.subjects, rectified.revoked_units) == ("rectify", 1, 1)
    assert (forgotten.kind, forgotten.subjects, forgotten.revoked_units) == ("forget", 2, 0)
    fit(tmp_path / "scratch", corrected.without("user-5", "user-8"), method=Retrain(), **ARGUMENTS)
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "scratch"))
    with Store.open(store) as opened:
        assert (opened.corrections(), opened.status().waiting) == ([], 0)
        assert opened.verify().problems == ()


@pytest.mark.parametrize("store", ["retrain"], indirect=True)
def test_a_correction_that_comes_in_during_a_fit_waits_for_the_next(store: Path) -> None:
    forget(store, "user-8")

    class Asks(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            with Store.open(store) as opened:
                if not opened.corrections():
                    opened.rectify(["user-3"])

    trainer = make_trainer(store, Asks(), method=Retrain(), **ARGUMENTS)
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    assert [receipt.kind for receipt in receipts(store)] == ["forget"]
    with Store.open(store) as opened:
        assert opened.status().corrections == 1
        assert opened.verify().problems == ()
    refit(store, People.make().replaced("user-3"))
    assert [receipt.kind for receipt in receipts(store)] == ["forget", "rectify"]


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_a_method_with_one_model_refuses_to_set_it_aside(store: Path) -> None:
    with Store.open(store) as opened:
        for ask in (opened.restrict, opened.release):
            with pytest.raises(UnsupportedError, match=r"trains one model.*cannot restrict"):
                ask(["user-3"])
        assert (opened.request_number, opened.count_restricted()) == (0, 0)


@pytest.mark.parametrize("store", EVERY_REPLACING, indirect=True)
def test_a_request_that_waits_has_no_name(store: Path) -> None:
    with Store.open(store) as opened, pytest.raises(ConfigurationError, match="they have no names"):
        opened.rectify(["user-3"], request_id="ticket-7")


def dying(method: EditingMethod) -> EditingMethod:
    """The same method, killed when it asks for a second loss, or at the end of its edit if it does not."""

    class Dying(type(method)):  # type: ignore[misc]
        def edit(self, session: EditSession) -> Mapping[str, Any]:
            asked = 0

            def loss(batch: Any) -> torch.Tensor:
                nonlocal asked
                asked += 1
                if asked == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return session.loss(batch)

            super().edit(replace(session, loss=loss))
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("it has been killed")

    killed: EditingMethod = Dying(**{field.name: getattr(method, field.name) for field in fields(method)})  # type: ignore[arg-type]
    return killed


@pytest.mark.parametrize("store", nightly_except(EDITING, "scrub"), indirect=True)
def test_an_edit_that_is_killed_changes_nothing_and_the_next_fit_has_the_bits_of_one_that_was_not(
    store: Path, tmp_path: Path
) -> None:
    before = tensors_of(store)
    forget(store, "user-3")
    shutil.copytree(store, tmp_path / "other" / store.name)
    with pytest.raises(WorkerError, match="died"):
        fit(store, People.make(), method=dying(EXAMPLES[store.name]), **ARGUMENTS)  # type: ignore[arg-type]
    assert_bitwise_equal(before, tensors_of(store))
    with Store.open(store) as opened:
        assert (opened.request_number, opened.status().waiting) == (0, 1)
    for same in (store, tmp_path / "other" / store.name):
        refit(same, People.make())
    assert_bitwise_equal(tensors_of(store), tensors_of(tmp_path / "other" / store.name))
    assert len(receipts(store)) == 1


@pytest.mark.parametrize("store", nightly_except(EDITING, "bad_teacher"), indirect=True)
def test_an_edit_changes_the_model_and_its_provenance_says_how(store: Path) -> None:
    before = tensors_of(store)
    forget(store, "user-3")
    refit(store, People.make())
    (unit,) = before
    after = tensors_of(store)[unit]
    assert any(not torch.equal(tensor, before[unit][name]) for name, tensor in after.items())
    with Store.open(store) as opened:
        edit = opened.provenance()[0]["edit"]
    arguments = {field.name: getattr(EXAMPLES[store.name], field.name) for field in fields(EXAMPLES[store.name])}  # type: ignore[arg-type]
    assert (edit["method"], edit["forgotten_rows"], edit["arguments"]) == (store.name, 3, arguments)


@pytest.mark.parametrize("given", ["amnesia", {"name": "ssd", "beta": 1}, {"alpha": 1}])
def test_a_method_that_is_not_there_or_other_arguments_are_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="method"):
        method_of(given)


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'retrain', which is Retrain's name"):
        register_method(type("Other", (Retrain,), {}))
