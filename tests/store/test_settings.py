"""Settings: what differs is named in full, what does not is let through."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.errors import ConfigurationError, StoreMismatchError
from lightning_s3t.store import Store
from lightning_s3t.store.settings import check_settings, normalise

PARTITION = {"shards": 2, "slices": 3, "seed": 0}
NAMES = st.sampled_from(["seed", "model", "adapter", "r", "layers"])
LEAVES = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from(["x", "cyclic"]), st.lists(st.integers()))
SETTINGS = st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)
TREES = st.dictionaries(NAMES, SETTINGS, max_size=4)


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found.update(leaves(value, f"{path}{name}.") if isinstance(value, dict) and value else {f"{path}{name}": value})
    return found


def named_in(error: StoreMismatchError) -> set[str]:
    lines = str(error).splitlines()
    return {line[4:].split(": store ")[0] for line in lines if line.startswith("  - ")}


@given(TREES)
def test_settings_agree_with_themselves_however_they_were_kept(tree: dict[str, Any]) -> None:
    check_settings(json.loads(json.dumps(tree)), tree, "store", whole=True)
    check_settings(normalise(tree), normalise(tree), "store", whole=True)


@given(TREES, st.data())
def test_a_part_agrees_with_the_whole(tree: dict[str, Any], data: st.DataObject) -> None:
    part = {name: tree[name] for name in tree if data.draw(st.booleans())}
    check_settings(tree, part, "store")


@given(TREES, TREES)
def test_settings_that_differ_are_refused_whatever_they_are(old: dict[str, Any], new: dict[str, Any]) -> None:
    if old == new:
        check_settings(old, new, "store", whole=True)
    else:
        with pytest.raises(StoreMismatchError):
            check_settings(old, new, "store", whole=True)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(0, 2), min_size=1)), st.data())
def test_every_leaf_that_differs_is_named_and_no_other(old: dict[str, Any], data: st.DataObject) -> None:
    new = {name: {key: data.draw(st.integers(0, 2)) for key in inner} for name, inner in old.items()}
    expected = {name for name, value in leaves(old).items() if leaves(new)[name] != value}
    with pytest.raises(StoreMismatchError) if expected else nullcontext() as refused:
        check_settings(old, new, "store")
    assert (named_in(refused.value) if refused else set()) == expected


def test_every_one_of_many_is_named() -> None:
    old = {f"layer{number}": {"r": number} for number in range(40)}
    new = {f"layer{number}": {"r": number + 1} for number in range(40)}
    with pytest.raises(StoreMismatchError) as refused:
        check_settings(old, new, "store")
    assert named_in(refused.value) == {f"layer{number}.r" for number in range(40)}


def test_a_message_says_what_the_store_has_what_is_now_and_what_to_do(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", {"partition": PARTITION, "adapter": {"peft_type": "LORA"}}) as store:
        with pytest.raises(StoreMismatchError) as refused:
            store.check({"adapter": {"peft_type": "IA3"}, "partition": {"seed": 1}}, hint="Use LoRA.")
        first, *lines, last = str(refused.value).splitlines()
        assert str(tmp_path / "store") in first
        assert lines == ["  - adapter.peft_type: store LORA, now IA3", "  - partition.seed: store 0, now 1"]
        assert last == "Use LoRA."


def test_a_setting_that_is_new_or_gone_is_absent_on_one_side(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", {"partition": PARTITION, "adapter": {"old": 1}}).close()
    with pytest.raises(StoreMismatchError, match=r"adapter\.new: store absent, now 2") as refused:
        Store.create(tmp_path / "store", {"partition": PARTITION, "adapter": {"new": 2}})
    assert "adapter.old: store 1, now absent" in str(refused.value)


def test_a_setting_that_is_called_absent_is_not_the_same_as_none(tmp_path: Path) -> None:
    with (
        Store.create(tmp_path / "store", {"partition": PARTITION}) as store,
        pytest.raises(StoreMismatchError, match="padding"),
    ):
        store.check({"padding": "absent"})


def test_tuples_and_whole_numbers_as_keys_are_what_json_makes_of_them(tmp_path: Path) -> None:
    settings = {"partition": PARTITION, "adapter": {"orders": ((0, 1), (1, 0)), "groups": {1: ("layer.1",)}}}
    Store.create(tmp_path / "store", settings).close()
    with Store.create(tmp_path / "store", settings) as store:
        assert store.manifest.adapter is not None
        assert store.manifest.adapter["orders"] == [[0, 1], [1, 0]]
        store.check({"adapter": {"groups": {1: ["layer.1"]}}})


def test_a_refused_opening_changes_nothing(tmp_path: Path) -> None:
    settings = {"partition": PARTITION, "adapter": {"seed": 0}}
    Store.create(tmp_path / "store", settings).close()
    with pytest.raises(StoreMismatchError):
        Store.create(tmp_path / "store", {**settings, "adapter": {"seed": 1}})
    with Store.create(tmp_path / "store", settings) as store:
        assert store.settings == settings


@pytest.mark.parametrize("partition", [{"shards": 0, "slices": 2, "seed": 0}, {"shards": 2, "slices": 2, "seed": -1}])
def test_a_partition_that_cannot_be_makes_no_folder(tmp_path: Path, partition: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="Expected argument"):
        Store.create(tmp_path / "store", {"partition": partition})
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, "partition: Field required"),
        ({"partition": {"shards": "2", "slices": 3}}, "partition.shards: Input should be a valid integer"),
        ({"partition": PARTITION, "head": []}, "head: Extra inputs"),
        ({"partition": PARTITION, "training": {"isolation": "thread"}}, "training.isolation: Input should be"),
    ],
)
def test_settings_that_are_not_a_manifest_make_no_folder(tmp_path: Path, settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        Store.create(tmp_path / "store", settings)
    assert not (tmp_path / "store").exists()
