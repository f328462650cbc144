"""A look before a request: it says what the request then does, and changes nothing."""

from __future__ import annotations

import shutil
import unicodedata
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_s3t.errors import UnknownSubjectError
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.people_store import PEOPLE, in_place, make, session
from tests.tiers import in_tier

ANN, BOB = in_place(0, 0), in_place(1, 1)


@settings(max_examples=in_tier(10, 60), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_it_says_what_the_request_then_does(
    filled: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever was forgotten, restricted and released before."""
    people = st.lists(st.sampled_from([*PEOPLE[:12], "stranger"]), min_size=1, max_size=3, unique=True)
    path = Path(shutil.copytree(filled, tmp_path_factory.mktemp("preview") / "store"))
    with Store.open(path) as store:
        for kind, subjects in data.draw(
            st.lists(st.tuples(st.sampled_from(["forget", "restrict", "release"]), people), max_size=4)
        ):
            if kind == "release":
                if restricted := sorted(store.restricted(subjects)):
                    store.release(restricted)
            else:
                getattr(store, kind)(subjects, strict=False)
        asked = data.draw(people)
        position = len(store.history())
        found = store.preview(asked)
        assert len(store.history()) == position
        record = store.forget(asked, strict=False)
        assert sorted(map(str, found.revoked)) == sorted(record.revoked)  # type: ignore[union-attr]
        for shard, unit in found.serving.items():
            assert record.serving[str(shard)] == (str(unit) if unit is not None else None)  # type: ignore[union-attr]
        assert set(store.preview(asked).subjects.values()) == {"forgotten"}


def test_it_says_what_is_known_of_each(path: Path) -> None:
    with Store.open(path) as store:
        store.forget([BOB])
        store.restrict([in_place(0, 1)])
        day = datetime.now(timezone.utc) + timedelta(days=3)
        store.schedule([ANN], day)
        found = store.preview([ANN, BOB, in_place(0, 1), "stranger", 17])
        assert list(found.subjects.values()) == ["known", "forgotten", "restricted", "unknown", "unknown"]
        assert found.due == {ANN: day.isoformat(timespec="milliseconds")}
        assert store.preview([ANN]).cells == ("0/0",)
        assert store.preview([BOB]).cells == store.preview([BOB]).revoked == ()
        assert UnitId(0, (0,)) in store.preview([ANN]).revoked


def test_without_a_registry_it_does_not_pretend_to_know(tmp_path: Path) -> None:
    with make(tmp_path / "store", register=False) as store:
        assert store.preview([ANN]).subjects == {ANN: "unregistered"}
        assert store.preview([ANN]).cells == ("0/0",)


def test_another_unicode_form_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        session(store).register([unicodedata.normalize("NFC", "Jos\xe9")])
        with pytest.raises(UnknownSubjectError, match="another Unicode form"):
            store.preview([unicodedata.normalize("NFD", "Jos\xe9")])
