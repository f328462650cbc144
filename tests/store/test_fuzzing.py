"""Any id, and anything at all in the store's files."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_s3t.core.events import Event
from lightning_s3t.errors import S3TError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from lightning_s3t.store.requests.journal import FILE
from tests.store.people_store import in_place
from tests.tiers import in_tier

ids = st.one_of(
    st.text(min_size=1).filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)),
    st.sampled_from(
        ["'; DROP TABLE tombstones; --", "../../etc/passwd", "a/b\\c", "\0", "\n", "%s", "é", "e\u0301", "x" * 100_000]
    ),
    st.integers(-(10**30), 10**30),
)


@settings(deadline=None, max_examples=in_tier(25, 50))
@given(st.lists(ids, min_size=1, max_size=5))
def test_any_id_is_forgotten_and_found_again(
    filled: Path, tmp_path_factory: pytest.TempPathFactory, people: list[str | int]
) -> None:
    with Store.open(shutil.copytree(filled, tmp_path_factory.mktemp("ids") / "store")) as store:
        receipt = store.forget(people, strict=False)
        assert receipt.subjects == len({str(person) for person in people})
        assert store.forgotten(map(str, people)) == set(map(str, people))
        assert store.verify().passed


@pytest.mark.parametrize("name", ["ledger.db", "subject.key", "journal.jsonl"])
@settings(deadline=None, max_examples=in_tier(25, 40))
@given(noise=st.binary(max_size=100), where=st.floats(0, 1), keep=st.booleans())
def test_any_file_of_the_store_may_be_anything(
    filled: Path, tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes, where: float, keep: bool
) -> None:
    path = Path(shutil.copytree(filled, tmp_path_factory.mktemp("fuzz") / "store"))
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
    data = (path / name).read_bytes()
    start = int(where * len(data))
    (path / name).write_bytes(data[:start] + noise + (data[start + len(noise) :] if keep else b""))
    try:
        with Store.open(path) as store:
            store.verify()
            for unit in store.alive():
                assert 0 not in unit.prefix or unit.shard != 0
                store.load(unit)
            store.forget([in_place(1, 1)], strict=False)
    except S3TError:
        pass
    shutil.rmtree(path)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text().map(lambda text: json.dumps({"position": text}).encode())))
def test_any_line_is_an_event_or_an_error_of_ours(line: bytes) -> None:
    with contextlib.suppress(S3TError):
        assert isinstance(Event.from_json(line), Event)


@settings(deadline=None, max_examples=in_tier(25, 60))
@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_a_store_with_any_journal_opens_or_says_why_not(
    filled: Path, tmp_path_factory: pytest.TempPathFactory, noise: bytes, where: int, cut: bool
) -> None:
    path = Path(shutil.copytree(filled, tmp_path_factory.mktemp("fuzz") / "store"))
    with Store.open(path) as store:
        store.forget([in_place(0, 0)])
    data = (path / FILE).read_bytes()
    (path / FILE).write_bytes(data[:where] + noise + (b"" if cut else data[where:]))
    try:
        with Store.open(path) as store:
            assert store.request_number >= 1
            assert UnitId(0, (0,)) not in store.alive()
    except S3TError:
        pass
