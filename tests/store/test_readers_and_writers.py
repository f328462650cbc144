"""Processes that forget and processes that read, at one store and as fast as they can."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from lightning_s3t.errors import RevokedError
from lightning_s3t.store import Store
from tests.store.people_store import PARTITION, PEOPLE, UNITS


def write_for_a_while(path: Path, people: list[str], number: int) -> None:
    with Store.open(path) as store:
        for person in people:
            store.forget([person])
            if number == 0:
                store.rotate_key() if person == people[0] else None


def read_for_a_while(path: Path, until: float) -> None:
    with Store.open(path) as store:
        while time.monotonic() < until:
            forgotten = store.forgotten(PEOPLE)
            places = {PARTITION.place(person) for person in forgotten}
            for unit in UNITS:
                try:
                    store.load(unit)
                except RevokedError:
                    continue
                reached = [place for place in places if unit.reached_by(place)]
                assert not reached, f"unit {unit} was loaded after {reached} were forgotten"


def test_two_writers_and_four_readers_agree(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    until = time.monotonic() + 3
    writers = [
        context.Process(target=write_for_a_while, args=(path, PEOPLE[number:40:2], number)) for number in range(2)
    ]
    readers = [context.Process(target=read_for_a_while, args=(path, until)) for _ in range(4)]
    for process in [*readers, *writers]:
        process.start()
    for process in [*writers, *readers]:
        process.join()
        assert process.exitcode == 0
    with Store.open(path) as store:
        assert store.forgotten(PEOPLE) == set(PEOPLE[:40])
        assert store.request_number == 40
        assert store.verify().passed
