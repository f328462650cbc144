"""A store that is killed at random times, again and again."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from lightning_s3t.store import Store
from tests.store.people_store import PEOPLE, UNITS, build
from tests.tiers import in_tier

KILLS = in_tier(30, 200)


def forget_and_rebuild(path: Path, acknowledgements: Path, seed: int) -> None:
    """Lives on the store as a service and its fits do; notes who was forgotten once that was answered."""
    draw = random.Random(seed)
    with Store.open(path) as store, acknowledgements.open("a") as file:
        while True:
            person, other = draw.choice(PEOPLE), draw.choice(PEOPLE)
            store.forget([person])
            print(person, file=file, flush=True)
            if store.restricted([other]):
                store.release([other])
            elif draw.random() < 0.5:
                store.restrict([other])
            else:
                store.rectify([other])
            with store.building():
                for unit in UNITS:
                    if unit not in store.alive() and (unit.parent is None or unit.parent in store.alive()):
                        build(store, unit, draw.random(), path.parent / f"{draw.randrange(3)}.ckpt")
            if draw.random() < 0.1:
                store.rotate_key()


def time_until_answered(acknowledgements: Path) -> float:
    """Wait for the first answer. On a busy machine it comes late, and so must the kills, or nothing is ever done."""
    start = time.monotonic()
    while not acknowledgements.read_text():
        assert time.monotonic() < start + 60, "the child does nothing"
        time.sleep(0.001)
    return time.monotonic() - start


def test_kills_at_random_times_lose_no_answered_request_and_bring_no_unit_back(path: Path, tmp_path: Path) -> None:
    answered = tmp_path / "answered"
    answered.touch()
    draw = random.Random(0)
    for number in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                forget_and_rebuild(path, answered, number)
            finally:
                os._exit(1)
        if number == 0:
            longest = max(0.05, 2 * time_until_answered(answered))
        else:
            time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the child failed by itself"
        with Store.open(path) as store:
            gone = set(answered.read_text().split())
            assert gone <= store.forgotten(PEOPLE)
            found = store.verify()
            assert found.passed, found.problems
            for unit in store.alive():
                store.load(unit)
    assert len(gone) > KILLS // 20, "the kills came before anything was done"
