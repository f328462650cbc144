"""The store: what is kept, what is refused, what is forgotten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_s3t.errors import (
    DataError,
    RevokedError,
    StoreError,
    StoreMismatchError,
    UnknownSubjectError,
)
from lightning_s3t.plan import Partition, UnitId, units_of
from lightning_s3t.store import Store
from tests.store.people_store import session

SETTINGS: dict[str, Any] = {"partition": {"shards": 2, "slices": 2, "seed": 0}, "adapter": {"r": 4, "deep": {"x": 1}}}
PEOPLE = [f"user-{number}" for number in range(40)]
UNITS = units_of(2, [(0, 1), (1, 0)])


def tensors(number: int) -> dict[str, Tensor]:
    return {"head.weight": torch.full((3,), float(number)), "lora": torch.arange(4) * number}


def person_in(shard: int, slice_: int) -> str:
    partition = Partition(**SETTINGS["partition"])
    return next(person for person in PEOPLE if partition.place(person) == type(partition.place(person))(shard, slice_))


def fill(store: Store, folder: Path | None = None) -> None:
    session(store).register(PEOPLE)
    with store.building():
        for number, unit in enumerate(UNITS, start=1):
            attempt = session(store).start_unit(unit, f"key-{unit}")
            if folder is not None:
                path = folder / f"{str(unit).replace('/', '_')}.ckpt"
                attempt.register_file(path)
                path.write_bytes(b"checkpoint")
            attempt.commit(tensors(number), {"unit": str(unit)}, score=float(number))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.create(tmp_path / "store", SETTINGS) as made:
        fill(made)
        yield made


KINDS = {
    "bfloat16": torch.randn(3, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "strided": torch.arange(12).reshape(3, 4).t(),
    "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    "int8": torch.tensor([-1], dtype=torch.int8),
}


def test_tensors_of_any_kind_come_back_bit_for_bit(store: Store) -> None:
    shared = torch.arange(6.0)
    kept = {**KINDS, "view": shared[:3], "same": shared}
    attempt = session(store).start_unit(UnitId(0, (0,)), "key")
    attempt.commit(kept, {})
    found = store.load(UnitId(0, (0,)))
    assert found.keys() == kept.keys()
    for name, tensor in kept.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(
            found[name].view(torch.uint8) if name == "nan" else found[name],
            tensor.contiguous().view(torch.uint8) if name == "nan" else tensor,
        )


def test_equal_tensors_share_a_snapshot_which_stays_as_long_as_one_needs_it(store: Store) -> None:
    for unit in (UnitId(0, (0,)), UnitId(1, (0,))):
        session(store).start_unit(unit, "key").commit({"b": torch.ones(2), "a": torch.zeros(1)}, {})
    assert len({store.alive()[unit].snapshot for unit in (UnitId(0, (0,)), UnitId(1, (0,)))}) == 1
    store.forget([person_in(0, 0)])
    assert torch.equal(store.load(UnitId(1, (0,)))["b"], torch.ones(2))
    digest = store.alive()[UnitId(1, (0,))].snapshot
    store.forget([person_in(1, 0)])
    assert not (store.path / "snapshots" / f"{digest}.safetensors").exists()


def test_a_store_opens_again_with_what_was_in_it(store: Store) -> None:
    with Store.open(store.path) as again:
        assert again.settings == SETTINGS
        assert again.partition == Partition(2, 2, 0)
        assert again.alive() == store.alive()
        assert again.provenance(UNITS[0])[0]["unit"] == str(UNITS[0])


def test_every_setting_that_differs_is_named(store: Store) -> None:
    other = {"partition": {"shards": 2, "slices": 4, "seed": 0}, "adapter": {"r": 8, "deep": {"y": 1}}}
    with pytest.raises(StoreMismatchError) as refused:
        Store.create(store.path, other)
    message = str(refused.value)
    for line in (
        "partition.slices: store 2, now 4",
        "adapter.r: store 4, now 8",
        "adapter.deep.y: store absent, now 1",
        "adapter.deep.x: store 1, now absent",
    ):
        assert line in message
    assert "give a new folder" in message


def test_a_part_of_the_settings_can_be_checked(store: Store) -> None:
    store.check({"adapter": {"r": 4}})
    with pytest.raises(StoreMismatchError, match=r"adapter\.r"):
        store.check({"adapter": {"r": 5}})


def test_a_folder_with_other_things_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="is not a store, and not empty"):
        Store.create(tmp_path, SETTINGS)
    with pytest.raises(StoreError, match="There is no store at"):
        Store.open(tmp_path)


def test_a_store_whose_making_was_cut_short_is_made_again(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", SETTINGS).close()
    (tmp_path / "store" / "ledger.db").unlink()
    with Store.create(tmp_path / "store", SETTINGS) as store:
        fill(store)
        assert len(store.alive()) == 8


def test_a_damaged_ledger_is_refused(store: Store) -> None:
    store.close()
    (store.path / "ledger.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(store.path)


def test_a_lost_key_is_refused(store: Store) -> None:
    store.close()
    (store.path / "subject.key").unlink()
    with pytest.raises(StoreError, match="has lost its key"):
        Store.open(store.path)


def test_the_key_is_the_owners_alone(store: Store) -> None:
    assert (store.path / "subject.key").stat().st_mode & 0o777 == 0o600


def test_forget_revokes_exactly_what_the_subject_reached(store: Store) -> None:
    receipt = store.forget([person_in(0, 1)])
    assert set(receipt.revoked) == {"0/0-1", "0/1", "0/1-0"}
    assert receipt.erased_files == 3
    assert receipt.serving == {"0": "0/0"}
    assert set(store.alive()) == {unit for unit in UNITS if str(unit) not in receipt.revoked}
    for text in receipt.revoked:
        with pytest.raises(RevokedError, match=f"has no unit {text}"):
            store.load(UnitId.parse(text))
    assert len(list((store.path / "snapshots").iterdir())) == 5


def test_a_request_again_changes_nothing_and_is_counted(store: Store) -> None:
    person = person_in(0, 1)
    store.forget([person])
    before = store.alive()
    receipt = store.forget([person, person])
    assert (receipt.request, receipt.subjects, receipt.already_forgotten, receipt.revoked) == (2, 1, 1, ())
    assert store.alive() == before


def test_unknown_subjects_are_refused_whole_or_get_a_tombstone(store: Store) -> None:
    with pytest.raises(UnknownSubjectError, match="has never seen 'nobody'"):
        store.forget([person_in(0, 0), "nobody"])
    assert (store.request_number, len(store.alive())) == (0, 8)
    receipt = store.forget(["nobody"], strict=False)
    assert (receipt.unknown, receipt.subjects) == (1, 1)
    assert store.forgotten(["nobody", "user-1"]) == {"nobody"}


def test_who_is_forgotten_stays_so_when_registered_again(store: Store) -> None:
    store.forget(["user-1"])
    session(store).register(PEOPLE)
    assert store.forgotten(PEOPLE) == {"user-1"}
    assert store.forget(["user-1"]).already_forgotten == 1


def test_ids_may_be_numbers(store: Store) -> None:
    session(store).register(["17"])
    assert store.forget([17]).subjects == 1
    with pytest.raises(DataError, match="Expected a non-empty string or an integer"):
        store.forget([1.5])


def test_ten_thousand_requests_are_one_transaction(store: Store) -> None:
    many = [f"id-{number}" for number in range(10_000)]
    session(store).register(many)
    receipt = store.forget(many)
    assert (receipt.request, receipt.subjects) == (1, 10_000)
    assert store.forgotten(many) == set(many)
    assert store.alive() == {}


def test_receipts_hold_no_ids_and_no_digests(store: Store) -> None:
    person, digest = person_in(0, 1), store.alive()[UnitId(0, (1,))].snapshot
    receipt = store.forget([person])
    assert store.receipts() == [receipt]
    assert person not in receipt.to_json()
    assert digest not in receipt.to_json()


def test_files_of_a_unit_go_with_it_and_nothing_else(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        (tmp_path / "bystander.ckpt").touch()
        fill(store, tmp_path)
        assert store.provenance(UNITS[0])[0]["files"][0]["bytes"] == 10
        receipt = store.forget([person_in(0, 1)])
        left = {path.stem.replace("_", "/") for path in tmp_path.glob("*.ckpt")}
        assert left == {str(unit) for unit in UNITS if str(unit) not in receipt.revoked} | {"bystander"}


def test_folders_are_never_erased(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    attempt = session(store).start_unit(UNITS[0], "key")
    attempt.register_file(tmp_path / "folder")
    attempt.abandon()
    assert (tmp_path / "folder").is_dir()


def test_nothing_of_a_forgotten_subject_is_readable_in_the_store(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", SETTINGS) as store:
        fill(store)
        secret = {"head.weight": torch.arange(1000, 1100, dtype=torch.float64)}
        session(store).start_unit(UnitId(0, (1,)), "a-secret-key").commit(secret, {"secret": "provenance-of-it"})
        digest = store.alive()[UnitId(0, (1,))].snapshot
        store.forget([person_in(0, 1)])
        marks = [person_in(0, 1).encode() + b'"', digest.encode(), secret["head.weight"].numpy().tobytes()[:64]]
        marks += [b"provenance-of-it", b"a-secret-key"]
        contents = b"".join(path.read_bytes() for path in store.path.rglob("*") if path.is_file())
        assert not [mark for mark in marks if mark in contents]
        assert not any(person.encode() in contents for person in PEOPLE)


def test_a_request_during_a_training_keeps_the_unit_out(store: Store, tmp_path: Path) -> None:
    unit = UnitId(0, (0, 1))
    attempt = session(store).start_unit(unit, "new")
    attempt.register_file(tmp_path / "new.ckpt")
    (tmp_path / "new.ckpt").touch()
    with Store.open(store.path) as elsewhere:
        elsewhere.forget([person_in(0, 1)])
    with pytest.raises(RevokedError, match="was revoked while it was trained"):
        attempt.commit(tensors(9), {})
    assert unit not in store.alive()
    assert not (tmp_path / "new.ckpt").exists()


def test_a_request_between_the_choice_of_the_data_and_the_start_keeps_the_unit_out(store: Store) -> None:
    store.forget([person_in(0, 1)])
    with pytest.raises(RevokedError, match="was revoked before it was trained"):
        session(store).start_unit(UnitId(0, (1,)), "key", as_of=0)
    session(store).start_unit(UnitId(0, (1,)), "key").abandon()


def test_a_unit_whose_parent_is_gone_is_not_kept(store: Store) -> None:
    attempt = session(store).start_unit(UnitId(0, (0, 1)), "key")
    session(store).drop([UnitId(0, (0,))])
    with pytest.raises(RevokedError, match="which unit 0/0-1 was trained on top of, no longer exists"):
        attempt.commit(tensors(1), {})


def test_dropping_a_unit_drops_what_was_built_on_it(store: Store) -> None:
    session(store).drop([UnitId(1, (1,))])
    assert {str(unit) for unit in UNITS} - {str(unit) for unit in store.alive()} == {"1/1", "1/1-0"}
    assert store.request_number == 0


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_damaged_snapshot_is_not_served(store: Store, damage: str) -> None:
    path = store.path / "snapshots" / f"{store.alive()[UNITS[0]].snapshot}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(bytes(data) if damage == "flipped" else data[:40])
    with pytest.raises(StoreError, match=f"The snapshot of unit {UNITS[0]} is (missing|damaged)"):
        store.load(UNITS[0])


def test_the_base_is_written_once(store: Store) -> None:
    assert store.load_base() is None
    session(store).save_base(tensors(3))
    assert torch.equal(store.load_base()["lora"], tensors(3)["lora"])  # type: ignore[index]
    with pytest.raises(StoreError, match="already has its base"):
        session(store).save_base(tensors(4))


def test_one_fit_at_a_time(store: Store) -> None:
    code = f"from lightning_s3t import Store\nwith Store.open({str(store.path)!r}).building(): pass"
    with store.building():
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Another fit is running" in refused.stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_process_sees_a_request_at_once(store: Store) -> None:
    person = person_in(1, 0)
    code = f"from lightning_s3t import Store; Store.open({str(store.path)!r}).forget([{person!r}])"
    assert store.request_number == 0
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.request_number == 1
    with pytest.raises(RevokedError):
        store.load(UnitId(1, (0,)))


def test_options_may_change(store: Store) -> None:
    session(store).note_options({"sequences": [[0, 1]]})
    with Store.open(store.path) as again:
        assert again.options == {"sequences": [[0, 1]]}
