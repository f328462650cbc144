"""The sampled landscape of the search, for more slices than all sets can be listed of."""

from __future__ import annotations

import numpy as np

from lightning_s3t.plan.objective.landscape import Profile, Reply, Ties
from lightning_s3t.plan.problem import Probabilities
from lightning_s3t.plan.units import SliceSequence

BEAM = 4


class SampledLandscape:
    """The landscape over drawn histories of requests.

    All its numbers are integers, so the search takes the same way on every machine.

    Args:
        probabilities: Of a request for each slice, shape (L,).
        horizon: Number of requests to look ahead, counting those that hit a new slice.
        samples: Number of histories.
        seed: Seed of the random draws.
    """

    def __init__(self, probabilities: Probabilities, horizon: int, samples: int, seed: int) -> None:
        self.slices = len(probabilities)
        self.samples = samples
        # RandomState's numbers are frozen, those of NumPy's newer generators may change with a release
        clocks = np.random.RandomState(seed).standard_exponential((samples, self.slices))
        asked = probabilities > 0
        # exponential clocks whose rates are the prior ring in the order of the requests
        clocks = np.where(asked, clocks / np.where(asked, probabilities, 1), np.inf)
        before = clocks.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        survives = np.where(asked, np.minimum(before, horizon), min(horizon, int(asked.sum())))
        self._survives = np.ascontiguousarray(survives.T, np.int16)  # by slice and history

    def nothing(self) -> Profile:
        """Returns the profile of no sequences: no stage survives any request."""
        return np.zeros((self.slices, self.samples), np.int16)

    def profile(self, sequence: SliceSequence) -> Profile:
        """Returns how many requests each prefix of the sequence survives, by stage and history.

        Args:
            sequence: A permutation of the slices.
        """
        return np.minimum.accumulate(self._survives[list(sequence)], axis=0)

    def value(self, profile: Profile) -> float:
        """Returns an estimate of the objective.

        Args:
            profile: Of some sequences.
        """
        return float(profile.sum(dtype=np.int64)) / self.samples

    def standard_error(self, profile: Profile) -> float:
        """Returns the standard error of the estimate.

        Args:
            profile: Of some sequences.
        """
        return float(profile.sum(axis=0, dtype=np.int64).std(ddof=1)) / float(np.sqrt(self.samples))

    def best_reply(self, profile: Profile, ties: Ties) -> Reply:
        """Returns a sequence that adds much to others, found by a beam search from its first slice on.

        Args:
            profile: Profile of the other sequences.
            ties: Not used: there are hardly any ties.
        """
        everything = np.full(self.samples, np.iinfo(np.int16).max, np.int16)
        beam: dict[frozenset[int], tuple[int, SliceSequence, Profile]] = {frozenset(): (0, (), everything)}
        for stage in range(self.slices):
            found: dict[frozenset[int], tuple[int, SliceSequence, Profile]] = {}
            for slices, (so_far, sequence, survives) in beam.items():
                left = [slice_ for slice_ in range(self.slices) if slice_ not in slices]
                longer = np.minimum(survives, self._survives[left])
                added = np.maximum(longer - profile[stage], 0).sum(axis=1, dtype=np.int32)
                for row, slice_ in enumerate(left):
                    total, key = so_far + int(added[row]), slices | {slice_}
                    if key not in found or total > found[key][0]:
                        found[key] = (total, (*sequence, slice_), longer[row])
            beam = dict(sorted(found.items(), key=lambda entry: (-entry[1][0], entry[1][1]))[:BEAM])
        sequence = next(iter(beam.values()))[1]
        own = self.profile(sequence)
        return Reply(sequence, own, self.value(np.maximum(profile, own)))
