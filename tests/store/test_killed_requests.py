"""Requests with a name, cancellations and rotations, killed before each change to the disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lightning_s3t.errors import UnknownSubjectError
from lightning_s3t.store import Store
from lightning_s3t.store.copies.exporting import make_export_name
from tests.store.kill_points import acknowledged_until_killed
from tests.store.people_store import UNITS, in_place
from tests.tiers import in_tier

ANN, BOB, EVE = in_place(0, 0), in_place(1, 0), in_place(1, 1)
EVERY = in_tier(4, 1)
SOON = datetime.now(timezone.utc) + timedelta(hours=1)


@pytest.fixture
def busy(path: Path, tmp_path: Path) -> Path:
    """A store with something of everything: a request, one for later, an exported copy."""
    with Store.open(path) as store:
        store.forget([BOB])
        store.schedule([EVE], SOON)
        unit, folder = UNITS[0], tmp_path / "out"
        folder.mkdir()
        store.export(make_export_name(unit), unit, [store.candidates()[unit].snapshot], {folder / "copy.bin": b"x"})
    return path


def killed_anywhere(store: Path, step: Callable[[Store], object]) -> Iterator[bool]:
    """Run a step again and again from the same start, each time killed later; say whether it was acknowledged."""

    def work() -> Iterator[str]:
        with Store.open(store) as opened:
            step(opened)
            yield "done"

    kept, fatal = Path(shutil.copytree(store, store.with_name("kept"))), 1
    while True:
        for name in [*store.iterdir()]:  # the folder stays the same: files outside are known by its number too
            shutil.rmtree(name) if name.is_dir() else name.unlink()
        shutil.copytree(kept, store, dirs_exist_ok=True)
        lines, lived = acknowledged_until_killed(work, fatal)
        yield bool(lines)
        if lived:
            break
        fatal += EVERY
    assert fatal > 10, "the kills went past what they should hit"


def test_a_named_request_that_is_killed_and_repeated_is_one_request(busy: Path) -> None:
    for _ in killed_anywhere(busy, lambda store: store.forget([ANN], request_id="ticket-7")):
        with Store.open(busy) as store:
            again = store.forget([ANN], request_id="ticket-7")
            assert (store.request_number, again.request, again.subjects) == (2, 2, 1)
            assert store.forgotten([ANN, BOB, EVE]) == {ANN, BOB}
            assert store.verify().passed


def test_a_cancellation_that_is_killed_is_whole_or_has_not_been(busy: Path) -> None:
    seen = set()
    for acknowledged in killed_anywhere(busy, lambda store: store.cancel([EVE])):
        with Store.open(busy) as store:
            waiting = sum(count for _, count in store.pending())
            assert waiting == 0 or not acknowledged
            seen.add(waiting)
            with contextlib.suppress(UnknownSubjectError):
                store.cancel([EVE])
            assert store.pending() == []
            assert store.verify().passed
    assert seen == {0, 1}


def test_a_rotation_that_is_killed_keeps_what_waits_and_what_was_exported(busy: Path) -> None:
    for _ in killed_anywhere(busy, lambda store: store.rotate_key()):
        with Store.open(busy) as store:
            assert store.verify().passed
            assert [count for _, count in store.pending()] == [1]
            assert len(store.exports()) == 1
            store.rotate_key()
            assert store.forgotten([ANN, BOB, EVE]) == {BOB}
            assert store.cancel([EVE]) == 1
            assert len(store.forget([ANN]).exports) == 1
