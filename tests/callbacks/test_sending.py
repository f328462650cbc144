"""The callback in other processes: a rank of ddp_spawn gets all of it, a unit's process only what it needs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lightning_s3t import S3T
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.executors.audit import AuditTarget
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.people_store import make


def test_a_callback_that_is_sent_before_a_fit_can_fit_there(tmp_path: Path) -> None:
    callback = S3T(tmp_path / "store", shards=2, slices=3, budget=2, subjects="index")
    sent = pickle.loads(pickle.dumps(callback))
    assert sent.config == callback.config
    assert sent.sequences == callback.sequences


def test_an_audit_is_not_sent(tmp_path: Path) -> None:
    make(tmp_path / "store").close()
    callback = S3T(tmp_path / "store", shards=2, slices=3, budget=2, subjects="index")
    with Store.open(tmp_path / "store") as store:
        target = AuditTarget(store, [str(UnitId(0, (0,)))], 0, tmp_path / "scratch")
        with callback.auditing(target), pytest.raises(UnsupportedError, match="ddp_spawn"):
            pickle.dumps(callback)
