"""What the search for good sequences needs from the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from lightning_s3t.plan.units import SliceSequence

Profile = NDArray[Any]
Ties = Callable[[], float]


class Reply(NamedTuple):
    """A sequence that adds much to others.

    Attributes:
        sequence: The sequence.
        profile: Its own profile.
        value: The value of it and the others together.
    """

    sequence: SliceSequence
    profile: Profile
    value: float


class Landscape(Protocol):
    """What the search needs from the objective.

    A profile is the value of a sequence in each possible case. The profile of several sequences is their maximum in
    each case, since a shard serves its best survivor.
    """

    def nothing(self) -> Profile:
        """Returns the profile of no sequences."""

    def profile(self, sequence: SliceSequence) -> Profile:
        """Returns a sequence's profile.

        Args:
            sequence: A permutation of the slices.
        """

    def value(self, profile: Profile) -> float:
        """Returns the objective: the expected length of the best surviving prefix, summed over the coming requests.

        Args:
            profile: Of some sequences.
        """

    def best_reply(self, profile: Profile, ties: Ties) -> Reply:
        """Returns a sequence that adds most to others.

        Args:
            profile: Profile of the other sequences.
            ties: Draws from [0, 1), to choose among equal ones.
        """
