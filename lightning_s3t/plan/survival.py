"""Survival: which units still serve after deletions, and how many deletions it takes to lose all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError


def survivors(alive: Iterable[UnitId], score: Mapping[UnitId, float | None] | None = None) -> dict[int, UnitId]:
    """Return each shard's best survivor: the longest, then the one with the better score.

    Args:
        alive: The units that are built and not revoked.
        score: A validation metric by unit, higher being better; a unit without one comes after those with.

    Returns:
        By shard, in order; shards without a survivor are absent. Ties are broken by the prefix, so that every process
        chooses the same.

    Example:
        >>> units = [UnitId(0, (0,)), UnitId(0, (1,)), UnitId(0, (1, 0)), UnitId(2, (1,))]
        >>> {shard: str(unit) for shard, unit in survivors(units).items()}
        {0: '0/1-0', 2: '2/1'}
    """
    # NaN is a failed metric: no better than none, and no order to sort by
    scores = {unit: value for unit, value in (score or {}).items() if value is not None and value == value}
    best: dict[int, UnitId] = {}
    for unit in sorted(alive, key=lambda u: (-len(u.prefix), -scores.get(u, float("-inf")), u.prefix)):
        best.setdefault(unit.shard, unit)
    return dict(sorted(best.items()))


def harmonic(n: int) -> float:
    """Return the n-th harmonic number, 1 + 1/2 + ... + 1/n.

    Args:
        n: From 0 on.

    Example:
        >>> harmonic(3)
        1.8333333333333333
    """
    return float(sum((Fraction(1, k) for k in range(1, n + 1)), Fraction(0)))


def deletion_rate(shards: int, slices: int, distinct_first: int) -> float:
    """Return the expected number of requests until no unit survives, for uniform requests.

    A shard is lost when each slice that comes first in one of its sequences was requested; over all shards this is a
    coupon collector who needs `shards * distinct_first` given ones of `shards * slices` coupons: after k of them are
    found, the next takes mL / (mB' - k) requests on average. The sum is m*L*H(m*B') (the paper's section 3.4). SISA is
    `distinct_first=1`.

    Args:
        shards: m.
        slices: L.
        distinct_first: B', the number of different first slices of the sequences.

    Raises:
        ConfigurationError: B' is not between 1 and L.

    Example:
        >>> round(deletion_rate(5, 6, 1), 1), round(deletion_rate(5, 6, 6), 1)
        (68.5, 119.8)
    """
    if not 1 <= distinct_first <= slices:
        raise ConfigurationError(
            f"Expected argument `distinct_first` to be from 1 to the number of slices, {slices}, but got "
            f"{distinct_first}."
        )
    return shards * slices * harmonic(shards * distinct_first)
