"""Growth: when to merge the generations of people who came after the first."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_s3t.errors import ConfigurationError


def merge_from(people: Sequence[int], shards: int) -> int | None:
    """Return the generation that all later ones should be merged into; None if merging is not worthwhile.

    Each generation after the first is a shard of its own: one more pass for each answer, and a weak one if it has few
    people. Merging trains on its people once more. It is worthwhile as soon as an older generation has at most as many
    people as all later ones together, as in the logarithmic method (Bentley and Saxe, J. Algorithms 1980, 1(4),
    301-358): each merge then at least doubles the generation that a person is in, except for the people who came last,
    so each person is trained on at most about log2(people of a shard / people of the smallest generation) times.
    Generations whose merge would be larger than a shard of the first generation are not merged: nothing would be
    gained.

    Args:
        people: The number of people in each generation, starting with the first (number 0).
        shards: Number of shards of the first generation.

    Raises:
        ConfigurationError: A number is negative, or `shards` is below 1.

    Example:
        >>> merge_from([1000, 80, 30, 20], shards=5), merge_from([1000, 80, 30, 20, 15], shards=5)
        (None, 2)
    """
    if shards < 1 or any(count < 0 for count in people):
        raise ConfigurationError(
            f"The generations have {list(people)} people, and the first has {shards} shards. Expected at least one "
            "shard and no negative numbers."
        )
    later, found = 0, None
    for number in range(len(people) - 1, 0, -1):
        if later and people[number] + later > people[0] / shards:
            break
        if number < len(people) - 1 and people[number] <= later:
            found = number
        later += people[number]
    return found
