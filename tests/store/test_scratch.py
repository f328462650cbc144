"""What is half-done is inside the store, and is removed with the process that did it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_s3t.store import Store
from lightning_s3t.store.disk.scratch import Scratch
from tests.store.people_store import UNITS, in_place, session

KILLED_IN_AN_AUDIT = """
import os, signal, sys
from pathlib import Path
from lightning_s3t.store import Store
from lightning_s3t.store.disk.scratch import Scratch

scratch = Scratch(Path(sys.argv[1]))
with Store.create(scratch.path / "store", {"partition": {"shards": 1, "slices": 1, "seed": 0}}):
    (scratch.path / "epoch=1.ckpt").write_text("half a checkpoint")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(path: Path) -> Path:
    """A store in which an audit was killed."""
    assert subprocess.run([sys.executable, "-c", KILLED_IN_AN_AUDIT, str(path)]).returncode == -9
    assert len(list(path.glob("scratch/*/epoch=1.ckpt"))) == 1
    return path


def test_opening_clears_what_a_killed_audit_has_left(left: Path) -> None:
    with Store.open(left) as store:
        assert not (left / "scratch").exists()
        assert store.verify().passed


def test_a_request_clears_it_too_where_the_store_has_been_open_all_the_time(path: Path) -> None:
    with Store.open(path) as store:
        subprocess.run([sys.executable, "-c", KILLED_IN_AN_AUDIT, str(path)])
        store.forget([in_place(0, 0)])
        assert not (path / "scratch").exists()


def test_what_is_in_use_is_left_alone(path: Path) -> None:
    scratch = Scratch(path)
    (scratch.path / "a").touch()
    with Store.open(path) as store:
        assert store.verify().passed
        store.forget([in_place(0, 0)])
    assert (scratch.path / "a").exists()
    scratch.close()
    assert not (path / "scratch").exists()


def test_a_link_among_what_was_left_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    (path / "scratch" / "dead").mkdir(parents=True)
    (path / "scratch" / "dead" / "link").symlink_to(tmp_path / "photos")
    (path / "scratch" / "link").symlink_to(tmp_path / "photos")
    Store.open(path).close()
    assert (tmp_path / "photos" / "1.jpg").exists()
    assert not (path / "scratch").exists()


def test_what_a_unit_has_half_written_goes_when_it_ends(path: Path) -> None:
    with Store.open(path) as store:
        for end in ("commit", "abandon"):
            attempt = session(store).start_unit(UNITS[0], "key")
            (attempt.scratch / "half").touch()
            attempt.commit({}, {}) if end == "commit" else attempt.abandon()
            assert not (path / "scratch").exists()


def test_what_a_unit_has_half_written_goes_when_the_fit_fails(path: Path) -> None:
    with Store.open(path) as store, store.building() as building:
        attempt = building.start_unit(UNITS[0], "key")
        (attempt.scratch / "half").touch()
        building.clear_attempts()
        assert not (path / "scratch").exists()
