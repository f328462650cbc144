"""Leases: replicas that may answer for a while without a look, and requests that wait until none can be behind.

A replica with a lease reads its own clock, looks at the ledger, and may answer until `max_staleness` seconds after that
reading. It is registered in the ledger before the first look. A request is complete when each replica that was
registered at its COMMIT has confirmed the request or has expired: a look that missed the request started before the
COMMIT, so its lease has ended `max_staleness` seconds later. No clock is compared with another; only their rates have
to agree (Gray and Cheriton, Leases, SOSP 1989).

A waiting process removes expired replicas, so a crashed replica delays only one request. A replica that was only slow
finds that it was removed, and registers again before it answers.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

from lightning_s3t.core.clock import DRIFT, own_clock
from lightning_s3t.errors import ConfigurationError, LedgerUnreachableError, RolledBackError, StoreError
from lightning_s3t.store.ledgers.ledger import Ledger

MAX_STALENESS = 60.0
"""The most seconds that a replica may answer without looking at the ledger."""
ANY_REQUEST = 1 << 62
"""A number larger than that of any request: all replicas are behind it."""
_SHORTEST = 0.05  # seconds: below, looking at every answer costs less
_POLL = 0.02  # seconds between two looks at who is behind

Clock = Callable[[], float]


class Lease:
    """A lease that lets a replica answer from loaded units without looking at the ledger each time.

    One thread looks; any thread may read the result.

    Args:
        ledger: The store's ledger.
        max_staleness: For how many seconds after a look the replica may answer.
        clock: The replica's own clock, in seconds.

    Raises:
        ConfigurationError: The time is not one that a replica may have.
    """

    def __init__(self, ledger: Ledger, max_staleness: float, clock: Clock = own_clock) -> None:
        if not _SHORTEST <= max_staleness <= MAX_STALENESS:
            raise ConfigurationError(
                f"Expected argument `max_staleness` to be 0, or between {_SHORTEST} and {MAX_STALENESS:.0f} seconds, "
                f"but got {max_staleness!r}."
            )
        self.max_staleness = max_staleness
        self._id = uuid.uuid4().hex
        self._ledger = ledger
        self._clock = clock
        self._looking = threading.Lock()
        self._newest = 0
        self._until = -math.inf
        self._closed = False

    @property
    def is_valid(self) -> bool:
        """Whether the replica may answer now."""
        return self._clock() < self._until

    def newest_request(self) -> int:
        """Return the newest request that is known of.

        Raises:
            LedgerUnreachableError: The last look is too old.
        """
        until = self._until
        newest = self._newest  # after it: another thread may renew the lease in between
        if self._clock() >= until:
            raise LedgerUnreachableError(
                f"The last check of the ledger is more than {self.max_staleness:g} seconds old, so nothing is "
                "answered: a loaded unit may have been revoked since. Answers resume with the next successful check."
            )
        return newest

    def look(self) -> int:
        """Look for requests, and renew the lease; return the newest request.

        Raises:
            LedgerUnreachableError: The ledger cannot be reached. The lease runs on to its end.
            StoreError: The ledger has lost requests or is damaged. The lease has ended.
        """
        with self._looking:
            try:
                return self._look()
            except LedgerUnreachableError:
                raise
            except BaseException:
                self._until = -math.inf
                raise

    def close(self) -> None:
        """End the lease, so that no request waits for this replica."""
        self._until = -math.inf  # before it is taken out
        with self._looking:
            self._closed = True
            with suppress(StoreError), self._ledger.transaction():  # otherwise the next request waits for it once
                self._ledger.remove_replicas([self._id])

    def _look(self) -> int:
        while not self._closed:
            began = self._clock()
            newest, known = self._ledger.look(self._id)
            if newest < self._newest:
                raise RolledBackError(
                    f"The ledger has lost request {self._newest}: it was replaced with an old copy. Nothing is "
                    "answered. Open the store again: the requests in its journal are carried out again."
                )
            self._newest = newest  # from now on no answer leaves that it revokes; only then may it be confirmed
            if known is None:
                with self._ledger.transaction():
                    self._ledger.add_replica(self._id, self.max_staleness, newest)
                continue  # a request that has not seen it may have come before it was noted: look again
            if known < newest:
                with self._ledger.transaction():
                    if not self._ledger.confirm(self._id, newest):
                        continue  # it was removed in the meantime
            # the replica was noted all the time since `began`
            self._until = began + self.max_staleness
            return newest
        raise LedgerUnreachableError("The lease is closed.")


class ReplicaWait:
    """Waiting until no replica can answer from units that a request has revoked. Made when its COMMIT has returned.

    Args:
        ledger: The store's ledger.
        request: The number of the request.
        behind: The replicas that were noted at the COMMIT, and for how many seconds each may answer without a look;
            None to ask the ledger.
        clock: This process's own clock, in seconds.
    """

    def __init__(
        self, ledger: Ledger, request: int, behind: Mapping[str, float] | None = None, clock: Clock = own_clock
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._clock = clock
        self._began = clock()
        self._behind = behind

    def is_over(self) -> bool:
        """Return whether no replica can still be behind; expired ones are removed from the ledger."""
        if self._behind is not None and not self._behind:
            return True
        try:
            self._behind = self._ledger.replicas_behind(self._request)
        except StoreError:
            if self._behind is None:  # whichever they are
                self._behind = {"": MAX_STALENESS}
        now = self._clock()
        if any(now < self._began + _bounded(seconds) * (1 + DRIFT) for seconds in self._behind.values()):
            return False
        if self._behind:
            with suppress(StoreError), self._ledger.transaction():  # otherwise the next request waits for them too
                self._ledger.remove_replicas(self._behind, behind=self._request)
        return True

    def wait(self) -> None:
        """Wait until it is over."""
        while not self.is_over():
            time.sleep(_POLL)


def wait_out(behind: Mapping[str, float]) -> None:
    """Wait until replicas that will not be notified any more have expired; after the COMMIT has returned.

    Args:
        behind: The replicas, and for how many seconds each may answer without a look.
    """
    until = own_clock() + max(map(_bounded, behind.values()), default=0.0) * (1 + DRIFT)
    while own_clock() < until:
        time.sleep(_POLL)


def _bounded(seconds: float) -> float:
    """Return how long a replica may be behind, bounded even if the ledger's value was tampered with."""
    return seconds if 0 <= seconds <= MAX_STALENESS else MAX_STALENESS
