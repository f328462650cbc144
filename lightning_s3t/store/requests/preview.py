"""A preview of a request: the state of subjects, and the effect of forgetting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_s3t.core.units import Cell, UnitId
from lightning_s3t.plan import survivors
from lightning_s3t.store.backend import Backend
from lightning_s3t.store.heads.floor import count_rows
from lightning_s3t.store.keys.keyring import Keyring
from lightning_s3t.store.ledgers.ledger import ledger_errors
from lightning_s3t.store.requests.effects import find_reach
from lightning_s3t.store.requests.forgetting import burial
from lightning_s3t.store.requests.lookup import Lookup
from lightning_s3t.store.units import parse_unit

SubjectState = Literal["known", "restricted", "forgotten", "unknown", "unregistered"]


@dataclass(frozen=True)
class Preview:
    """The state of subjects, and the effect of a request to forget them now.

    Attributes:
        subjects: The state of each, by canonical id: "known" is in the training data; "unknown" was never seen;
            "unregistered" is not forgotten, in a store without a registry, which would tell more.
        due: The time of each scheduled subject's request (UTC, ISO 8601), by canonical id.
        cells: The cells of subjects who are not forgotten: where their data is, or would be.
        revoked: The units that the request would revoke.
        serving: For each shard that it would reach, the unit that would serve then; None if none would be left.
        exports: The exported copies that it would reach.
        subtracted_rows: Number of rows that it would subtract from the closed-form head on the pretrained network.
    """

    subjects: dict[str, SubjectState]
    due: dict[str, str]
    cells: tuple[Cell, ...]
    revoked: tuple[UnitId, ...]
    serving: dict[int, UnitId | None]
    exports: tuple[str, ...]
    subtracted_rows: int


def preview(store: Backend, keyring: Keyring, lookup: Lookup, subjects: Sequence[str]) -> Preview:
    """Return the state of subjects, and the effect of a request to forget them, in a consistent read.

    Args:
        store: The store's backend.
        keyring: The store's keys.
        lookup: Looks up the subjects of requests.
        subjects: Canonical ids.

    Raises:
        UnknownSubjectError: A subject is known in another Unicode form.
    """
    ledger, number = store.ledger, store.ledger.watermark() + 1
    asked = lookup.find(subjects, strict=False)
    reach = find_reach(store, number, burial(ledger, asked, number))
    names = keyring.hashes(subjects)
    states: dict[str, SubjectState] = {}
    for hash_, subject in names.items():
        if hash_ in asked.forgotten:
            states[subject] = "forgotten"
        elif hash_ in asked.restricted:
            states[subject] = "restricted"
        elif asked.unknown is None:
            states[subject] = "unregistered"
        else:
            states[subject] = "unknown" if hash_ in asked.unknown else "known"
    waiting = ledger.waiting(names)
    gone = set(reach.units)
    serving: dict[int, UnitId | None] = {}
    with ledger_errors("The name of a unit"):
        revoked = tuple(sorted(parse_unit(name) for name in reach.revoked))
        for shard in sorted({unit.shard for unit in revoked}):
            scores = ledger.scores(f"{shard}/")
            left = {parse_unit(name): score for name, score in scores.items() if name not in gone}
            best = survivors(left, left)
            serving[shard] = best.get(shard)
    return Preview(
        subjects=states,
        due={names[hash_]: due for hash_, due, _ in ledger.scheduled() if hash_ in waiting} if waiting else {},
        cells=tuple(sorted({cell for _, cell in asked.to_forget})),
        revoked=revoked,
        serving=serving,
        exports=reach.exports,
        subtracted_rows=count_rows(store, [hash_ for hash_, _ in asked.to_forget]),
    )
