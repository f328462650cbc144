"""A comparison from end to end: a tiny model, and what is kept of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_s3t import Comparison, EnsembleModule, compare
from lightning_s3t.comparison.comparison import comparison_schema
from lightning_s3t.comparison.folder import ComparisonFolder
from lightning_s3t.errors import ConfigurationError, DataError, UnsupportedError
from lightning_s3t.methods import SSD, EditingMethod, EditSession, Retrain
from tests.people import Classifier, People, PeopleData, fit, make_trainer

PEOPLE = People.make()
METHODS = ["s3t", "ssd"]


def trainer(folder: Path, **arguments: Any) -> pl.Trainer:
    return make_trainer(folder / "untouched", adapter=None, epochs=1, **arguments)


def compared(folder: Path, methods: Any = METHODS, requests: Any = 2, **arguments: Any) -> Comparison:
    output = arguments.pop("output", folder / "output")
    data = arguments.pop("data", None) or PeopleData(PEOPLE)
    return compare(trainer(folder), Classifier(), data, methods, requests, output=output, **arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A comparison of three methods, for copying only."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder / "output", compared(folder)


@pytest.fixture(scope="module")
def found(done: tuple[Path, Comparison]) -> Comparison:
    return done[1]


def test_every_method_is_measured_after_the_same_requests(found: Comparison) -> None:
    assert [one.label for one in found.methods] == ["retrain", "s3t", "ssd"]
    assert found.setting.measured_after == (0, 1, 2)
    for one in found.methods:
        assert [moment.requests for moment in one.moments] == [0, 1, 2]
        assert one.refused is None
        assert all(0 <= (moment.test or 0) <= 1 for moment in one.moments)
        assert one.fit_seconds is not None
        assert one.request_seconds is not None
        assert one.storage_bytes is not None
        assert one.memory_bytes is not None
        assert one.memory_bytes > 10**7
        assert one.relearn_steps is not None


def test_guarantees_and_needs_are_those_of_the_methods(found: Comparison) -> None:
    assert [one.guarantee for one in found.methods] == ["exact", "exact", "empirical"]
    assert [one.needs for one in found.methods] == [("retained rows",), (), ("forgotten rows", "retained rows")]


def test_methods_that_replace_have_a_job_at_each_moment_and_those_that_revoke_a_fit_at_the_end(
    found: Comparison,
) -> None:
    for one in found.methods:
        jobs = [moment.job_seconds is not None for moment in one.moments]
        assert jobs == [False, one.response == "replace", one.response == "replace"]
        assert (one.refit_seconds is not None) == (one.response == "revoke")


def test_the_reference_is_a_training_on_what_stays(found: Comparison, tmp_path: Path) -> None:
    compared_again = compared(tmp_path, ["retrain"], ["user-3", "user-8"])
    fit(tmp_path / "by hand", PEOPLE.without("user-3", "user-8"), method=Retrain(), adapter=None, epochs=1)
    theirs = PEOPLE.without(*{owner for owner in PEOPLE.owners if owner not in ("user-3", "user-8")})
    test = People.make(30, seed=6)
    with EnsembleModule.from_store(tmp_path / "by hand", Classifier()) as served, torch.no_grad():
        by_hand = [float((served(part.features).argmax(-1) == part.labels).float().mean()) for part in (test, theirs)]
    moment = compared_again["retrain"].after(2)
    assert moment is not None
    assert [moment.test, moment.forgotten] == pytest.approx(by_hand)


def test_gaps_of_the_reference_to_itself_are_none(found: Comparison) -> None:
    for moment in found["retrain"].moments:
        assert moment.test_gap is not None
        assert moment.test_gap.value == 0
        assert moment.test_gap.lower < 0 < moment.test_gap.upper


def test_a_gap_is_the_difference_of_the_accuracies(found: Comparison) -> None:
    for one, reference in zip(found["s3t"].moments, found["retrain"].moments, strict=True):
        assert one.test is not None
        assert reference.test is not None
        assert one.test_gap is not None
        assert one.test_gap.value == pytest.approx(one.test - reference.test, abs=1e-6)


def test_before_requests_there_are_no_forgotten_rows_and_the_attack_is_on_all_who_will_ask(found: Comparison) -> None:
    before = found["ssd"].after(0)
    assert before is not None
    assert (before.forgotten, before.forgotten_gap) == (None, None)
    assert before.attack_auc is not None
    assert 0 <= before.attack_auc.lower <= before.attack_auc.value <= before.attack_auc.upper <= 1


def test_the_script_s_trainer_and_store_are_as_before(tmp_path: Path, done: tuple[Path, Comparison]) -> None:
    shutil.copytree(done[0], tmp_path / "output")
    own = trainer(tmp_path)
    callbacks = list(own.callbacks)  # type: ignore[attr-defined]
    compare(own, Classifier(), PeopleData(PEOPLE), METHODS, 2, output=tmp_path / "output")
    assert own.callbacks == callbacks  # type: ignore[attr-defined]
    assert not (tmp_path / "untouched").exists()


def test_what_is_done_is_not_done_again_and_a_method_can_be_added(
    tmp_path: Path, done: tuple[Path, Comparison]
) -> None:
    shutil.copytree(done[0], tmp_path / "output")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "output" / "runs").rglob("*.json")}
    again = compared(tmp_path, [*METHODS, "closed_form"])
    assert [one.label for one in again.methods] == ["retrain", "s3t", "ssd", "closed_form"]
    assert again.methods[:3] == done[1].methods
    added = again["closed_form"]
    assert (added.response, added.refused, added.lasted) == ("subtract", None, None)
    assert added.refit_test == added.after(2).test  # type: ignore[union-attr]
    assert "at once" in str(again)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert not (tmp_path / "output" / "work").exists()  # stores are removed


def test_the_output_has_no_id_in_it(done: tuple[Path, Comparison]) -> None:
    contents = b"".join(path.read_bytes() for path in done[0].rglob("*") if path.is_file())
    assert b"user-" not in contents


def test_other_settings_are_refused_by_name(tmp_path: Path, done: tuple[Path, Comparison]) -> None:
    shutil.copytree(done[0], tmp_path / "output")
    with pytest.raises(ConfigurationError, match=r"other settings \(data: .*measured_after: \[0, 1, 2\] there"):
        compared(tmp_path, requests=3)
    other = Classifier(depth=3)
    with pytest.raises(ConfigurationError, match=r"weights: .*another `output`"):
        compare(trainer(tmp_path), other, PeopleData(PEOPLE), METHODS, 2, output=tmp_path / "output")


def test_other_arguments_under_the_same_label_are_refused(tmp_path: Path, done: tuple[Path, Comparison]) -> None:
    shutil.copytree(done[0], tmp_path / "output")
    with pytest.raises(
        ConfigurationError, match=r"'ssd' with the arguments SSD\(alpha=10.0.*now it has SSD\(alpha=2.0"
    ):
        compared(tmp_path, ["s3t", SSD(alpha=2.0)])


def test_a_folder_that_another_comparison_is_in_is_refused(tmp_path: Path, done: tuple[Path, Comparison]) -> None:
    shutil.copytree(done[0], tmp_path / "output")
    settings = json.loads((tmp_path / "output" / "settings.json").read_text())
    with (
        ComparisonFolder(tmp_path / "output", settings).held(),
        pytest.raises(ConfigurationError, match="Another comparison is running"),
    ):
        compared(tmp_path)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="files that are not part of a comparison"):
        compared(tmp_path)
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["amnesia"]}, "There is no method 'amnesia'"),
        ({"methods": []}, "Expected argument `methods` to be a list"),
        ({"methods": ["ssd", SSD(alpha=2.0)]}, "'ssd' is among `methods` twice"),
        ({"methods": {"../up": "ssd"}}, "cannot name a folder"),
        ({"methods": {"retrain": "ssd"}}, "is reserved for the reference"),
        ({"requests": 40}, "from 1 to 39 but got 40: the data has 40 subjects"),
        ({"requests": 0}, "from 1 to 39 but got 0"),
        ({"requests": ["user-1", "user-1"]}, "a subject appears twice"),
        ({"requests": ["nobody"]}, "1 of them are not in the data"),
        ({"measure_after": [3]}, "numbers from 0 to 2"),
        ({"seeds": 0}, "`seeds` to be a positive integer"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compared(tmp_path, **arguments)
    assert not (tmp_path / "output").exists()


def test_a_trainer_without_the_callback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has 0 Unlearning callbacks"):
        compare(pl.Trainer(logger=False, accelerator="cpu"), Classifier(), PeopleData(PEOPLE), output=tmp_path)


def test_shards_have_to_be_known(tmp_path: Path) -> None:
    own = make_trainer(tmp_path / "store", method=SSD(), adapter=None)
    with pytest.raises(ConfigurationError, match="needs to know how many shards"):
        compare(own, Classifier(), PeopleData(PEOPLE), ["sisa"], 2, output=tmp_path / "output")


def test_a_module_that_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    class Silent(pl.LightningModule):
        pass

    with pytest.raises(UnsupportedError, match="neither a test_step nor a validation_step"):
        compare(trainer(tmp_path), Silent(), PeopleData(PEOPLE), output=tmp_path / "output")


def test_several_test_dataloaders_are_refused(tmp_path: Path) -> None:
    class Two(PeopleData):
        def test_dataloader(self) -> Any:
            return [super().test_dataloader(), super().test_dataloader()]

    with pytest.raises(DataError, match="gives 2 test dataloaders"):
        compared(tmp_path, data=Two(PEOPLE))


@dataclass(frozen=True)
class Refusing(EditingMethod):
    """Refuses to edit."""

    name = "refusing"

    def edit(self, session: EditSession) -> Mapping[str, Any]:
        raise ConfigurationError("No such edit.")


def test_a_method_that_refuses_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    loader = DataLoader(PEOPLE, 8, shuffle=True)
    found = compare(
        trainer(tmp_path),
        Classifier(),
        None,
        {"no": Refusing(), "tuned": "fine_tune"},
        1,
        output=tmp_path / "output",
        train_dataloaders=loader,
        test_dataloaders=DataLoader(People.make(30, seed=6), 16),
    )
    assert found["no"].refused is not None
    assert "No such edit" in found["no"].refused
    assert [moment.test is not None for moment in found["no"].moments] == [True, False]
    assert found["tuned"].refused is None
    assert "no did not finish" in str(found)


def test_where_nothing_is_left_there_is_no_number(tmp_path: Path) -> None:
    found = compared(tmp_path, {"sisa": {"name": "sisa", "shards": 1, "slices": 1}}, 1)
    sisa = found["sisa"]
    assert sisa.lasted == 1
    after = sisa.after(1)
    assert after is not None
    assert (after.test, after.attack_auc, sisa.relearn_steps) == (None, None, None)
    assert sisa.refit_test is not None
    assert found.overtaken("sisa")["retrain"] <= 1
    found.plot()


def test_the_document_fits_its_schema_and_can_be_read_again(found: Comparison) -> None:
    text = found.to_json()
    jsonschema.validate(json.loads(text), comparison_schema())
    assert Comparison.from_json(text) == found
    assert comparison_schema() == json.loads(Path("docs/comparison.schema.json").read_text())
    with pytest.raises(ConfigurationError, match="not a comparison"):
        Comparison.from_json("{}")


def test_tables_have_a_row_for_each_method(found: Comparison) -> None:
    for text in (str(found), found.to_markdown()):
        assert text.count("s3t") >= 3
        assert "Cost" in text
    axes = found.plot().axes
    assert [line.get_xdata()[-1] for line in axes[0].lines] == [2, 2, 2]


@pytest.mark.parametrize(("name", "panels"), [("comparison", 2), ("comparison-thorough", 3), ("comparison-text", 2)])
def test_published_comparisons_can_be_drawn(name: str, panels: int) -> None:
    found = Comparison.from_json(Path(f"docs/benchmarks/{name}.json").read_text())
    axes = found.plot().axes
    assert len(axes) == panels
    assert [text.get_text() for text in axes[-1].get_yticklabels()] == [one.label for one in found.methods]


def test_overtaken_is_from_when_on_another_is_ahead_to_the_end(found: Comparison) -> None:
    with pytest.raises(ConfigurationError, match="no method 'x'"):
        found.overtaken("x")
    for label, since in found.overtaken("s3t").items():
        for moment in found[label].moments:
            other = found["s3t"].after(moment.requests)
            assert other is not None
            if moment.requests >= since:
                assert (moment.test or 0) > (other.test or -1)


SCRIPT = """
import os, signal, sys
from pathlib import Path
from lightning_s3t import compare
from lightning_s3t.methods import SSD
from tests.people import Classifier, People, PeopleData, make_trainer

class Killing(SSD):
    script = os.getpid()

    def edit(self, session):
        os.kill(self.script, signal.{signal})
        signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
here = Path(sys.argv[1])
own = make_trainer(here / "untouched", adapter=None, epochs=1)
if __name__ == "__main__":
    compare(own, Classifier(), PeopleData(People.make()), {{"ssd": Killing()}}, 1, output=here / "output")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_after_a_kill_or_ctrl_c_a_second_call_goes_on(tmp_path: Path, name: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(signal=name))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, script, tmp_path]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -getattr(signal, name), ended.stderr
    kept = tmp_path / "output" / "runs" / "retrain" / "seed-0.json"
    before = kept.stat().st_mtime_ns
    assert not (kept.parent.parent / "ssd").exists()
    assert (tmp_path / "output" / "work").exists() == (name == "SIGKILL")  # after Ctrl-C nothing is left
    found = compared(tmp_path, ["ssd"], 1)
    assert kept.stat().st_mtime_ns == before
    assert found["ssd"].after(1) is not None
    assert not (tmp_path / "output" / "work").exists()


@pytest.mark.nightly
def test_a_thorough_comparison_attacks_with_the_models_of_all_seeds(tmp_path: Path) -> None:
    found = compared(tmp_path, ["fine_tune"], 2, thorough=True, seeds=4)
    assert found.setting.seeds == (0, 1, 2, 3)
    tuned, reference = found["fine_tune"], found["retrain"]
    assert tuned.u_lira is not None
    assert 0 <= tuned.u_lira.lower <= tuned.u_lira.value <= tuned.u_lira.upper <= 1
    assert reference.u_lira is None  # what is retrained is told from itself
    assert tuned.rmia is not None
    assert reference.rmia is not None
    assert "U-LiRA" in found.to_markdown()
    assert Comparison.from_json(found.to_json()) == found
