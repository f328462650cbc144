"""An overview of a store: which units serve, are alive, revoked or missing, and how long it will last."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.core.guarantees import Certificate
from lightning_s3t.core.manifest import Manifest
from lightning_s3t.core.units import UnitId
from lightning_s3t.plan import Partition, collector, harmonic, merge_from, survivors
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.generations import generations_of
from lightning_s3t.store.heads.floor import read_states
from lightning_s3t.store.history import ever_revoked
from lightning_s3t.store.ledgers.ledger import ledger_errors
from lightning_s3t.store.units import parse_unit, read_units

State = Literal["serves", "alive", "aside", "revoked", "missing"]
_LOW = 0.25


@dataclass(frozen=True)
class GenerationOverview:
    """People who came together after the first, and have a shard of their own.

    Attributes:
        shard: Their shard.
        opened: The time when the first of them was registered (UTC, ISO 8601).
        subjects: Number of registered, not forgotten subjects.
    """

    shard: int
    opened: str
    subjects: int


@dataclass(frozen=True)
class Overview:
    """The contents of a store.

    Attributes:
        sequences: The sequences of slices that each shard is trained on.
        states: The state of every unit, by shard, sequence and stage.
        serving: By shard, the unit that serves.
        shards: Number of shards, those of people who came later among them; 0 for a method without units.
        slices: Number of slices of a shard.
        requests: Number of requests that were carried out.
        capacity: Expected number of further requests until nothing is left, if all subjects are as likely to ask;
            infinite for a method that only subtracts, which serves until no subject is left.
        full_capacity: The same for a store in which every unit is alive.
        isolation: How units were isolated: "forkserver", "fork", or "none" if they shared a process.
        method: The unlearning method.
        guarantee: The guarantee of the serving units after a request.
        response: The effect of a request: "revoke", "subtract" or "replace".
        waiting: Number of subjects for the next fit to forget; the serving model still has their data in it.
        last_fit: What the last fit found in the data; None before the first.
        floor_rows: Number of rows that the closed-form head on the pretrained network has learnt from, which answers
            when no unit is left; None without one, if requests have left no row, or while rows of the data are missing.
        heads: The units that serve with an additional closed-form head, from the rows of all other shards.
        restricted: Number of restricted subjects: no fit trains on them, and no unit that they reached serves.
        set_aside: The units that are kept for them, by name. Several may have one name, and one may be trained again
            in its place.
        corrections: Number of subjects who wait for the next fit to train on their corrected data.
        generations: The generations after the first.
        merge_from: The generation that it pays to merge all later ones into; None if it pays for none.
        certificate: The numbers of a certified guarantee; None for another.
        heads_lack_rows: Whether a release or a correction has left out rows of closed-form heads, which the next fit
            adds.
    """

    sequences: tuple[tuple[int, ...], ...]
    states: tuple[tuple[tuple[State, ...], ...], ...]
    serving: dict[int, UnitId]
    shards: int
    slices: int
    requests: int
    capacity: float
    full_capacity: float
    isolation: str
    method: str
    guarantee: str
    response: str
    waiting: int
    last_fit: dict[str, Any] | None
    floor_rows: int | None = None
    heads: tuple[UnitId, ...] = ()
    restricted: int = 0
    set_aside: tuple[str, ...] = ()
    corrections: int = 0
    generations: tuple[GenerationOverview, ...] = ()
    merge_from: int | None = None
    certificate: Certificate | None = None
    heads_lack_rows: bool = False

    @property
    def has_units(self) -> bool:
        """Whether the method trains units; otherwise a closed-form head serves alone."""
        return self.response != "subtract"

    @property
    def served_share(self) -> float:
        """The share of the slices that the survivors were trained on, from 0 to 1; 1 if a method has no units."""
        if not self.has_units:
            return 1.0 if self.floor_rows is not None else 0.0
        return sum(unit.stage for unit in self.serving.values()) / max(1, self.shards * self.slices)

    @property
    def advice(self) -> str | None:
        """Why fit should be called again; None if it is not needed."""
        if self.waiting:
            return f"Call fit with the same store: {self.waiting} subjects wait to be forgotten."
        if self.corrections:
            return (
                f"Call fit with the same store: the corrected data of {self.corrections} subjects has not been used "
                "yet."
            )
        rows = (
            "Call fit with the same callback and store: it adds corrected rows, and the rows of released people, to "
            "the closed-form heads."
        )
        if not self.has_units:
            if self.floor_rows is not None:
                return rows if self.heads_lack_rows else None
            return "Nothing serves. Call fit with the same store: it reads the rows that are left."
        empty = [one for one in self.generations if not one.subjects and one.shard not in self.serving]
        dark = self.shards - len(empty) - len(self.serving)
        again = "Call fit with the same store: it trains the revoked units again, without the forgotten data."
        if dark:
            floor = " The floor answers." if not self.serving and self.floor_rows is not None else ""
            return f"{dark} of {self.shards} shards serve nothing.{floor} {again}"
        if self.capacity < _LOW * self.full_capacity:
            return f"Only {self.capacity / self.full_capacity:.0%} of the deletion capacity is left. {again}"
        if self.served_share < 0.5:
            return f"The serving model was trained on {self.served_share:.0%} of the slices. {again}"
        if self.heads_lack_rows:
            return rows
        if self.merge_from is not None:
            return (
                f"People who came later are spread over many small shards: merge generations {self.merge_from} to "
                f"{len(self.generations)} into one (s3t store consolidate), and call fit with the same store."
            )
        return None

    @classmethod
    def of(
        cls,
        store: Backend,
        partition: Partition,
        manifest: Manifest,
        options: Mapping[str, Any],
        waiting: int,
    ) -> Overview:
        """Inspect a store, for `Store.status`.

        Args:
            store: The store's backend.
            partition: The current partition, with all generations.
            manifest: The settings and the method of its units.
            options: The notes of its fits.
            waiting: Number of subjects for the next fit to forget.
        """
        ledger = store.ledger
        alive, states = read_units(ledger), read_states(store)
        heads = {source: state.rows for source, state in states.items() if state.serves}
        sequences = tuple(tuple(sequence) for sequence in options.get("sequences", []))
        serving = survivors(alive, {unit: record.score for unit, record in alive.items()})
        used = {ancestor for unit in serving.values() for ancestor in unit.lineage}
        revoked = ever_revoked(ledger)
        with ledger_errors("The name of a unit"):
            aside = sorted(parse_unit(one.name) for one in ledger.aside())

        def state(unit: UnitId) -> State:
            if unit in used:
                return "serves"
            if unit in alive:
                return "alive"
            return "aside" if unit in aside else "revoked" if unit in revoked else "missing"

        has_units = manifest.method.has_units
        shards = partition.all_shards if has_units else 0
        firsts = {sequence[0] for sequence in sequences}
        opened, counts = generations_of(ledger), ledger.count_generations() if partition.generations else {}
        people = tuple(counts.get(number, 0) for number in range(len(opened))) if partition.generations else ()

        def lifetime(first: Collection[UnitId]) -> float:
            return _lifetime(partition, people, first) if has_units else math.inf

        return cls(
            sequences=sequences,
            states=tuple(
                tuple(tuple(state(unit) for unit in UnitId(shard, sequence).lineage) for sequence in sequences)
                for shard in range(shards)
            ),
            serving=serving,
            shards=shards,
            slices=partition.slices,
            requests=ledger.watermark(),
            capacity=lifetime([unit for unit in alive if unit.stage == 1]),
            full_capacity=lifetime([UnitId(shard, (first,)) for shard in range(shards) for first in firsts]),
            isolation=manifest.isolation,
            method=manifest.method.name,
            guarantee=manifest.method.guarantee,
            response=manifest.method.response,
            waiting=waiting,
            last_fit=options.get("last_fit"),
            floor_rows=heads.get(PRETRAINED),
            heads=tuple(unit for unit in serving.values() if str(unit) in heads),
            restricted=len(ledger.marks("restricted")),
            set_aside=tuple(map(str, aside)),
            corrections=len({mark.hash for mark in ledger.marks("awaiting")}),
            generations=tuple(
                GenerationOverview(partition.shard_of_generation(number), opened[number].opened, people[number])
                for number in range(1, len(people))
            ),
            merge_from=merge_from(people, partition.shards) if people else None,
            certificate=manifest.method.certificate,
            heads_lack_rows=any(state.lacks for state in states.values()),
        )


def _lifetime(partition: Partition, people: Sequence[int], first: Collection[UnitId]) -> float:
    """Return the expected number of requests until none of some units of the first stage is left.

    They are the coupons that `deletion_rate` collects. All subjects are equally likely to ask, so a slice of a small
    generation is requested less often.
    """
    places = partition.shards * partition.slices
    if not people:
        return places * harmonic(len(first))
    slices = [people[0] / places, *(count / partition.slices for count in people[1:])]
    shares = [slices[partition.generation_of(unit.shard)] / sum(people) for unit in first] if any(people) else []
    asked = [share for share in shares if share > 0]
    return collector(asked) if asked else 0.0
