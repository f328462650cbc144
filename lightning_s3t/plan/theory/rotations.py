"""What remains with all rotations of a sequence, in closed form, for any number of slices.

Put the slices on a circle, in the order of the sequence. The L rotations begin at every slice, so a shard serves the
longest run of slices on the circle without a request. For d requested slices this is one less than the longest of d
gaps whose sizes, each with the requested slice at its end, sum to L; all such sizes are equally likely. By inclusion
and exclusion over the gaps that are larger than k,

    P(no gap is larger than k) = sum over j of (-1)^j C(d, j) C(L-1-jk, d-1) / C(L-1, d-1)

(FedSGT, arXiv 2511.23393, has it for one shard). The number of different slices among r requests is that of a coupon
collector.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan.families import Family
from lightning_s3t.plan.survival import harmonic


def rotation_share(slices: int, requests: int, shards: int = 1) -> float:
    """Return the expected share of the slices that all L rotations still serve, for equally likely requests.

    Args:
        slices: Number of slices, L; every rotation of a sequence is trained (`cyclic` with a budget of L).
        requests: Number of requests.
        shards: Number of shards, m, among which they fall.

    Raises:
        ConfigurationError: A number is out of range.

    Example:
        >>> [round(rotation_share(10, requests), 3) for requests in (1, 2, 3, 5, 10)]
        [0.9, 0.65, 0.513, 0.359, 0.197]
    """
    if slices < 1 or shards < 1 or requests < 0:
        raise ConfigurationError(
            f"Found slices={slices}, shards={shards} and requests={requests}. Expected at least one slice, at least "
            "one shard, and no negative number of requests."
        )
    return float(rotation_survival(slices, requests, shards).mean())


def rotation_survival(slices: int, requests: int, shards: int = 1) -> NDArray[np.float64]:
    """Returns the chance that a shard of all L rotations still serves a prefix of each length, as `rotation_share`.

    Args:
        slices: Number of slices, L.
        requests: Number of requests.
        shards: Number of shards, m.

    Returns:
        Shape (L,); the first entry is for one slice.

    Example:
        >>> rotation_survival(3, requests=1).tolist()
        [1.0, 1.0, 0.0]
    """
    return _distinct_requests(shards, slices, requests) @ _longest_runs(slices)


def limit_share(requests: int, rotations: bool = True) -> float:
    """Returns the share of a shard that is served after some requests to it, for ever finer slices.

    The requests cut a circle into r random gaps; the expected length of the longest is H(r)/r of the circle
    (Whitworth), where H is the harmonic number. A single sequence (SISA) is a line with r cuts, and the expected part
    before the first is 1/(r+1).

    Args:
        requests: Number of requests for the shard, r.
        rotations: All rotations are trained; otherwise one sequence.

    Example:
        >>> [round(limit_share(requests), 2) for requests in (1, 2, 3, 5, 10)]
        [1.0, 0.75, 0.61, 0.46, 0.29]
        >>> limit_share(3, rotations=False)
        0.25
    """
    if not rotations:
        return 1 / (requests + 1)
    return harmonic(requests) / requests if requests else 1.0


def are_rotations(family: Family) -> bool:
    """Returns whether sequences are all the rotations of one of them.

    Args:
        family: The sequences, all different.

    Example:
        >>> are_rotations(((0, 2, 1), (2, 1, 0), (1, 0, 2))), are_rotations(((0, 2, 1), (2, 1, 0)))
        (True, False)
    """
    first = family[0]
    return set(family) == {first[start:] + first[:start] for start in range(len(first))}


def _distinct_requests(shards: int, slices: int, requests: int) -> NDArray[np.float64]:
    # how many different slices of one shard were asked for: shape (L + 1,)
    found, chance = np.arange(slices + 1), np.zeros(slices + 1)
    chance[0] = 1
    new = (slices - found) / (shards * slices)
    for _ in range(requests):
        after = chance * (1 - new)
        after[1:] += chance[:-1] * new[:-1]
        chance = after
    return chance


@lru_cache(maxsize=8)
def _longest_runs(slices: int) -> NDArray[np.float64]:
    # the chance that a run of at least k slices is left after d were asked for: [d, k - 1], shape (L + 1, L)
    left = np.ones((slices + 1, slices))
    for asked in range(1, slices + 1):
        ways = math.comb(slices - 1, asked - 1)
        for run in range(1, slices + 1):  # a gap is one longer than the run before its requested slice
            none = sum(
                (-1) ** larger * math.comb(asked, larger) * math.comb(slices - 1 - larger * run, asked - 1)
                for larger in range(min(asked, (slices - 1) // run) + 1)
            )
            left[asked, run - 1] = 1 - none / ways
    left.setflags(write=False)
    return left
