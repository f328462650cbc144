"""A fit that may take only so long: it ends between two units, and the next one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Timer

from lightning_s3t import S3T
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import survivors
from lightning_s3t.store import Store
from tests.people import Classifier, People, PeopleData, assert_bitwise_equal, fit, make_trainer, tensors_of
from tests.tiers import nightly_except

MOMENT = 1e-3  # seconds: too short for any unit
WAYS: dict[str, dict[str, Any]] = {
    "time_budget": {"time_budget": MOMENT},
    "max_time": {"trainer": {"max_time": {"microseconds": 1000}}},
    "one process": {"time_budget": MOMENT, "isolation": "none"},
}


@pytest.mark.parametrize("way", nightly_except(WAYS, "time_budget"))
def test_each_fit_trains_one_unit_at_least_and_the_next_goes_on(tmp_path: Path, way: str) -> None:
    store, served = tmp_path / "store", [0]
    for units in range(1, 5):
        trainer = make_trainer(store, **WAYS[way])
        trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
        s3t = next(callback for callback in trainer.callbacks if isinstance(callback, S3T))
        assert s3t.summary.out_of_time
        with Store.open(store) as opened:
            alive = opened.alive()
        assert len(alive) == units
        served.append(sum(unit.stage for unit in survivors(alive).values()))
    assert served == [0, 1, 2, 3, 4], "each unit is one slice more that serves"


@pytest.mark.nightly
def test_what_several_fits_have_trained_is_what_one_would_have(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    for arguments in ({"time_budget": MOMENT}, {"time_budget": "01:00:00:00"}):
        fit(tmp_path / "store", People.make(), **arguments)
    fit(tmp_path / "scratch", People.make())
    assert len(tensors_of(tmp_path / "store")) == 8
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(tmp_path / "scratch"))


def test_several_at_a_time_end_likewise(tmp_path: Path) -> None:
    fit(tmp_path / "store", People.make(), time_budget=MOMENT, parallel_units=2)
    assert {str(unit) for unit in tensors_of(tmp_path / "store")} == {"0/0", "1/0"}


@pytest.mark.nightly
def test_the_trainers_timer_is_there_again_after_the_fit(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "store", trainer={"max_time": "00:01:00:00"})
    before = list(trainer.callbacks)
    trainer.fit(Classifier(), datamodule=PeopleData(People.make()))
    assert trainer.callbacks == before
    assert any(isinstance(callback, Timer) for callback in before)
    assert len(tensors_of(tmp_path / "store")) == 8


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`time_budget`"):
        make_trainer(tmp_path / "store", time_budget="soon")
