"""Leases: no replica that may answer is behind a request that has returned, whatever happens in between."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_s3t.core.clock import DRIFT
from lightning_s3t.core.events import Event
from lightning_s3t.errors import ConfigurationError, LedgerUnreachableError, RolledBackError
from lightning_s3t.store.ledgers.ledger import Ledger
from lightning_s3t.store.requests.leases import MAX_STALENESS, Lease, ReplicaWait
from tests.store.backends import sqlite


class World:
    """Replicas, requests and a clock, which a test moves one step at a time.

    Args:
        ledger: A real one.
        seconds: For how long each replica may answer without a look.
        rates: How fast each replica's own clock runs.
    """

    def __init__(self, ledger: Ledger, seconds: list[float], rates: list[float]) -> None:
        self.now = 1000.0
        self.ledger = ledger
        self.seconds = seconds
        self.rates = rates
        self.leases: list[Lease | None] = [self._lease(number) for number in range(len(seconds))]
        self.cut = [False] * len(seconds)
        self.waits: dict[int, ReplicaWait] = {}
        self.returned = 0

    def _lease(self, number: int) -> Lease:
        rate = self.rates[number]
        return Lease(Cut(self, number), self.seconds[number], clock=lambda: 77.0 * number + self.now * rate)

    def do(self, step: tuple[Any, ...]) -> None:
        getattr(self, step[0])(*step[1:])
        for lease in self.leases:
            if lease is not None:
                try:
                    assert lease.newest_request() >= self.returned
                except LedgerUnreachableError:
                    assert not lease.is_valid

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def request(self) -> None:
        with self.ledger.transaction():
            number = self.ledger.watermark() + 1
            self.ledger.append(Event.after(self.ledger.head(), "request", number, {}), 0)
            behind = self.ledger.replicas_behind(number)
        self.waits[number] = ReplicaWait(self.ledger, number, behind, clock=lambda: self.now)

    def retry(self) -> None:
        """Ask for the newest request once more, in a process that knows nothing of it."""
        number = self.ledger.watermark()
        if number:
            self.waits[number] = ReplicaWait(self.ledger, number, clock=lambda: self.now)

    def poll(self) -> None:
        for number, wait in list(self.waits.items()):
            if wait.is_over():
                del self.waits[number]
                self.returned = max(self.returned, number)

    def run_out(self) -> None:
        """Move the clock to when the oldest wait ends, and no further."""
        if self.waits:
            began = min(wait._began for wait in self.waits.values())
            self.now = max(self.now, began + min(self.seconds) * (1 + DRIFT))
        self.poll()

    def look(self, number: int, *meanwhile: tuple[Any, ...]) -> None:
        """A replica looks, and other things happen between what it reads and what it makes of it."""
        lease = self.leases[number]
        if lease is not None:
            self.meanwhile = list(meanwhile)
            try:
                lease.look()
            except LedgerUnreachableError:
                assert self.cut[number]

    def cut_off(self, number: int) -> None:
        self.cut[number] = not self.cut[number]

    def crash(self, number: int) -> None:
        self.leases[number] = None

    def close(self, number: int) -> None:
        lease = self.leases[number]
        if lease is not None:
            lease.close()
            assert not lease.is_valid
        self.leases[number] = None

    def start(self, number: int) -> None:
        if self.leases[number] is None:
            self.leases[number] = self._lease(number)


class Cut:
    """A ledger as one replica reaches it: not at all, or slowly."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number

    def __getattr__(self, name: str) -> Any:
        if self._world.cut[self._number]:
            raise LedgerUnreachableError("cut off")
        return getattr(self._world.ledger, name)

    def look(self, replica: str) -> tuple[int, int | None]:
        found: tuple[int, int | None] = self.__getattr__("look")(replica)
        steps, self._world.meanwhile = self._world.meanwhile, []
        for step in steps:
            self._world.do(step)
        return found


NUMBERS = st.integers(0, 1)
COMMON = st.one_of(
    st.tuples(st.just("pass_time"), st.sampled_from([0.3, 0.6, 0.995])),
    st.sampled_from([("request",), ("run_out",), ("request",), ("run_out",), ("poll",), ("retry",)]),
)
RARE = st.tuples(st.sampled_from(["cut_off", "crash", "close", "start"]), NUMBERS)
LOOK = st.builds(lambda number, steps: ("look", number, *steps), NUMBERS, st.lists(COMMON, max_size=4))
STEPS = st.one_of(LOOK, COMMON, LOOK, COMMON, RARE)


@pytest.fixture(scope="module")
def ledger_of() -> Iterator[Callable[[], Ledger]]:
    with tempfile.TemporaryDirectory() as folder:
        made: list[Ledger] = []

        def make() -> Ledger:
            place = Path(folder, str(len(made)))
            place.mkdir()
            made.append(sqlite(place))
            return made[-1]

        yield make
        for ledger in made:
            ledger.close()


@given(
    steps=st.lists(STEPS, max_size=30),
    seconds=st.lists(st.sampled_from([1.0, 2.0]), min_size=2, max_size=2),
    rates=st.lists(st.sampled_from([1 - DRIFT / 2, 1.0, 1 + DRIFT / 2]), min_size=2, max_size=2),
)
def test_no_replica_that_may_answer_is_behind_a_request_that_has_returned(
    ledger_of: Callable[[], Ledger], steps: list[tuple[Any, ...]], seconds: list[float], rates: list[float]
) -> None:
    world = World(ledger_of(), seconds, rates)
    for step in steps:
        world.do(step)
    # and no request waits for ever
    world.do(("pass_time", 2 * (1 + DRIFT)))
    world.do(("poll",))
    assert world.waits == {}
    # who has not come is gone, and is not waited for again
    world.do(("request",))
    world.do(("pass_time", 2 * (1 + DRIFT)))
    world.do(("poll",))
    assert world.ledger.replicas_behind(world.ledger.watermark()) == {}


@pytest.mark.parametrize(
    "steps",
    [
        # a request comes between a replica's first look and its entry, and does not know of it
        [("look", 0, ("request",), ("poll",))],
        # a replica is taken out between its look and its confirmation, so the next request does not know of it
        [
            ("look", 0),
            ("request",),
            ("pass_time", 0.9),
            ("look", 0, ("pass_time", 0.2), ("run_out",), ("request",), ("poll",)),
        ],
        # a look takes long
        [("look", 0), ("look", 0, ("request",), ("pass_time", 0.6)), ("run_out",)],
        # a replica's clock is slow
        [("look", 0), ("request",), ("pass_time", 1.0), ("poll",)],
        # a replica that has come at the last moment is not taken out
        [("look", 0), ("request",), ("pass_time", 0.9), ("look", 0), ("run_out",), ("request",), ("poll",)],
    ],
)
def test_steps_between_each_other(ledger_of: Callable[[], Ledger], steps: list[tuple[Any, ...]]) -> None:
    world = World(ledger_of(), [1.0], [1 - DRIFT / 2])
    for step in steps:
        world.do(step)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = sqlite(tmp_path)
    yield opened
    opened.close()


def test_a_request_waits_for_a_replica_that_may_be_behind_and_no_longer_than_it_may(ledger: Ledger) -> None:
    world = World(ledger, [2.0], [1.0])
    for step in [("look", 0), ("request",), ("poll",)]:
        world.do(step)
    assert (world.returned, list(world.waits)) == (0, [1])
    world.do(("look", 0))
    world.do(("poll",))
    assert world.returned == 1  # at once, when it knows of the request
    world.do(("request",))
    world.do(("pass_time", 1.99))
    world.do(("poll",))
    assert world.returned == 1
    world.do(("pass_time", 0.04))
    world.do(("poll",))
    assert world.returned == 2  # it has not come: it has run out


def test_a_replica_that_has_crashed_is_waited_for_once(ledger: Ledger) -> None:
    world = World(ledger, [1.0], [1.0])
    for step in [("look", 0), ("crash", 0), ("request",), ("pass_time", 1.1), ("poll",), ("request",), ("poll",)]:
        world.do(step)
    assert world.returned == 2


def test_a_replica_that_was_taken_for_dead_is_noted_again_before_it_answers(ledger: Ledger) -> None:
    world = World(ledger, [1.0], [1.0])
    for step in [("look", 0), ("cut_off", 0), ("request",), ("pass_time", 1.1), ("poll",), ("cut_off", 0)]:
        world.do(step)
    assert ledger.replicas_behind(99) == {}
    world.do(("look", 0))
    lease = world.leases[0]
    assert lease is not None
    assert (lease.newest_request(), list(ledger.replicas_behind(99).values())) == (1, [1.0])


def test_a_closed_replica_is_not_waited_for(ledger: Ledger) -> None:
    world = World(ledger, [1.0], [1.0])
    for step in [("look", 0), ("close", 0), ("request",), ("poll",)]:
        world.do(step)
    assert world.returned == 1


def test_a_replica_that_is_cut_off_answers_to_the_end_of_its_lease_and_goes_on_with_the_next_look(
    ledger: Ledger,
) -> None:
    world = World(ledger, [1.0], [1.0])
    for step in [("look", 0), ("cut_off", 0), ("pass_time", 0.9), ("look", 0)]:
        world.do(step)
    lease = world.leases[0]
    assert lease is not None
    assert lease.newest_request() == 0
    world.do(("pass_time", 0.1))
    with pytest.raises(LedgerUnreachableError, match="more than 1 seconds old"):
        lease.newest_request()
    for step in [("cut_off", 0), ("look", 0)]:
        world.do(step)
    assert lease.newest_request() == 0


def test_a_ledger_that_has_lost_a_request_ends_the_lease_at_once(ledger: Ledger, tmp_path: Path) -> None:
    world = World(ledger, [1.0], [1.0])
    for step in [("request",), ("look", 0)]:
        world.do(step)
    (tmp_path / "older").mkdir()
    world.ledger = sqlite(tmp_path / "older")
    lease = world.leases[0]
    assert lease is not None
    with pytest.raises(RolledBackError, match="lost request 1"):
        lease.look()
    assert not lease.is_valid
    world.ledger.close()


def test_what_somebody_writes_into_the_ledger_makes_no_request_wait_for_ever(ledger: Ledger) -> None:
    now = 0.0
    with ledger.transaction():
        ledger.add_replica("a", 1e12, 0)
        ledger.add_replica("b", -1.0, 0)
        ledger.add_replica("c", math.inf, 0)
    wait = ReplicaWait(ledger, 1, clock=lambda: now)
    assert not wait.is_over()
    now = MAX_STALENESS * 1.02
    assert wait.is_over()


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.01, 61.0, math.nan, math.inf])
def test_only_a_time_that_a_request_can_wait_for_is_taken(ledger: Ledger, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="max_staleness"):
        Lease(ledger, seconds)
