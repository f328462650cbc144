"""What methods say that a request needs is what their edits read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lightning_s3t.methods import (
    ASSD,
    LFSSD,
    PGU,
    SCRUB,
    SISA,
    SSD,
    Amnesiac,
    BadTeacher,
    EditingMethod,
    EditRows,
    FineTune,
    GradientAscent,
    Influence,
    LabelFlipping,
    NegGradPlus,
    RandomLabels,
    Retrain,
    S3TMethod,
    SalUn,
    Sparse,
)
from tests.methods.sessions import make_rows, make_session, trained

EDITS = [
    SSD(),
    ASSD(),
    LFSSD(),
    FineTune(epochs=1),
    GradientAscent(epochs=1),
    NegGradPlus(epochs=1),
    RandomLabels(epochs=1),
    SalUn(epochs=1),
    LabelFlipping(epochs=1),
    SCRUB(epochs=1, ascent_epochs=1),
    BadTeacher(),
    Sparse(epochs=1),
    PGU(epochs=1),
    Influence(order="first"),
    Influence(damping=1.0, iterations=1),
]


@pytest.mark.parametrize("method", EDITS, ids=repr)
def test_an_edit_reads_what_it_needs_and_nothing_else(method: EditingMethod) -> None:
    forget, retain = make_rows(8, seed=1), make_rows(24, seed=2)
    session = make_session(trained(retain, steps=5), forget, retain)
    read: set[str] = set()

    def noting(rows: EditRows, name: str) -> EditRows:
        inner = rows.read

        def noted(batches: Iterable[Sequence[int]]) -> Iterator[Any]:
            for batch in inner(batches):
                read.add(name)
                yield batch

        return EditRows(len(rows), noted)

    method.edit(
        replace(
            session,
            forget=noting(session.forget, "forgotten rows"),
            retain=noting(session.retain, "retained rows"),
        )
    )
    assert read == set(method.needs)


def test_what_needs_no_edit_needs_rows_to_train_on_or_nothing() -> None:
    assert S3TMethod(2, 2, 2).needs == SISA(2).needs == ()
    assert Retrain().needs == ("retained rows",)
    assert Amnesiac().needs == ("training steps",)  # its edit is tested in test_amnesiac.py, without any rows
