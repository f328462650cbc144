"""The verbs `plan` and `simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_s3t.cli import main
from lightning_s3t.cli.prior_file import read_prior
from lightning_s3t.cli.worth import read_worth
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.plan import Partition, UnitId, plan_sequences
from lightning_s3t.store import Store
from lightning_s3t.tuning import describe_layers

Output = pytest.CaptureFixture[str]
PLAN = ["plan", "--shards", "5", "--slices", "6"]
SIMULATE = ["simulate", "--shards", "2", "--slices", "3", "--budget", "2", "--trials", "200"]


def document(capsys: Output, *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_shows_its_orders_its_cost_and_the_baselines(capsys: Output) -> None:
    assert main([*PLAN, "--budget", "3"]) == 0
    out = capsys.readouterr().out
    assert "0 - 1 - 2 - 3 - 4 - 5" in out
    assert "Training: 90 units, 10.5 times" in out
    assert all(name in out for name in ("optimal", "bms", "cyclic", "sisa"))
    assert "within 1.1% of a bound for any 3 sequences" in " ".join(out.split())


def test_a_plan_as_json_has_the_numbers(capsys: Output) -> None:
    found = document(capsys, *PLAN, "--budget", "3", "--requests", "1", "7")
    optimal, *_, sisa = found["planners"]
    assert [tuple(sequence) for sequence in optimal["sequences"]] == list(plan_sequences("optimal", 6, 3))
    assert optimal["deletion_rate"] == pytest.approx(99.55, abs=0.01)
    assert sisa["deletion_rate"] == pytest.approx(68.5, abs=0.01)
    assert [moment["requests"] for moment in optimal["after"]] == [1, 7]
    assert "snapshot_bytes" not in optimal


def test_orders_that_part_late_are_shown_as_a_trie(capsys: Output) -> None:
    assert main(["plan", "--shards", "1", "--slices", "3", "--budget", "6", "--sequences", "all"]) == 0
    tree = capsys.readouterr().out.partition("Training")[0]
    assert tree.count("1 - 2") == 1
    assert tree.count("2 - 1") == 1


@pytest.mark.parametrize(("limit", "most"), [(["--units", "8"], 8), (["--fine-tunes", "5.2"], 5.2)])
def test_a_cost_may_be_the_budget(capsys: Output, limit: list[str], most: float) -> None:
    found = document(capsys, "plan", "--shards", "2", "--slices", "4", *limit)["planners"][0]
    assert (found["units"] / 2 if limit[0] == "--units" else found["fine_tunes"]) <= most


@pytest.mark.parametrize("budget", [[], ["--budget", "2", "--units", "9"]])
def test_one_budget_is_expected(capsys: Output, budget: list[str]) -> None:
    assert main([*PLAN, *budget]) == 2
    assert "Expected exactly one" in capsys.readouterr().err


def test_the_bytes_of_a_models_snapshots_are_those_of_what_its_stages_train(capsys: Output) -> None:
    arguments = ["plan", "--shards", "2", "--slices", "3", "--budget", "1", "--model", "vit_tiny_patch16_224"]
    found = document(capsys, *arguments, "--classes", "7", "--rank", "4")["planners"][0]
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    head, *groups, _ = describe_layers(model, 3, adapter={"r": 4}).rows
    assert found["snapshot_bytes"] == 2 * 4 * sum(group.trainable + head.trainable for group in groups)


def test_an_estimate_by_layers_is_that_of_a_vision_transformer(capsys: Output) -> None:
    arguments = ["plan", "--shards", "1", "--slices", "4", "--budget", "1", "--classes", "10"]
    estimate = document(capsys, *arguments, "--layers", "12", "--width", "192")["planners"][0]
    exact = document(capsys, *arguments, "--model", "vit_tiny_patch16_224")["planners"][0]
    assert estimate["snapshot_bytes"] == exact["snapshot_bytes"]


def test_fewer_layers_than_slices_are_refused(capsys: Output) -> None:
    assert main([*PLAN, "--budget", "1", "--layers", "4"]) == 2
    assert "4 layers for 6 layer groups" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--width", "--classes", "--rank"])
def test_sizes_below_one_are_refused(capsys: Output, option: str) -> None:
    assert main([*PLAN, "--budget", "1", "--layers", "12", option, "0"]) == 2
    assert f"{option} to be at least 1 but got 0" in capsys.readouterr().err


def test_a_prior_moves_the_likely_slice_back(capsys: Output, tmp_path: Path) -> None:
    prior = tmp_path / "prior.json"
    prior.write_text("[10, 1, 1]")
    found = document(capsys, "plan", "--shards", "1", "--slices", "3", "--budget", "1", "--prior", str(prior))
    assert found["planners"][0]["sequences"][0][-1] == 0


def test_a_plan_says_how_many_requests_it_stands_until_each_floor(capsys: Output) -> None:
    found = document(capsys, *PLAN, "--budget", "3", "--levels", "0.9", "0.5")
    optimal, *_, sisa = found["planners"]
    assert [level["level"] for level in optimal["requests_until"]] == [0.9, 0.5]
    for first, second in zip(optimal["requests_until"], sisa["requests_until"], strict=True):
        assert first["requests"]["mean"] > second["requests"]["mean"]


def test_worth_on_a_curve_of_the_paper_stands_longer_than_data(capsys: Output) -> None:
    arguments = [*PLAN, "--budget", "3", "--levels", "0.9"]
    data, curve = (document(capsys, *arguments, "--worth", name)["planners"][0] for name in ("data", "cifar-100"))
    assert curve["requests_until"][0]["requests"]["mean"] > 2 * data["requests_until"][0]["requests"]["mean"]


def test_a_worth_that_is_none_is_refused_with_those_there_are(capsys: Output) -> None:
    assert main([*PLAN, "--budget", "1", "--worth", "imagenet"]) == 2
    assert "cifar-100" in capsys.readouterr().err


def test_worth_may_be_the_scores_of_a_stores_units(tmp_path: Path, capsys: Output) -> None:
    scores = {(0,): 0.2, (0, 1): 0.4, (1,): 0.4, (1, 0): 0.4}
    settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
    with Store.create(tmp_path / "store", settings) as store, store.building() as session:
        session.register(["ann", "ben"])
        for prefix, score in scores.items():
            session.start_unit(UnitId(0, prefix), "key").commit({"w": torch.ones(1)}, {}, score)
    # one slice: a mean of 0.3, three quarters of what two have
    assert read_worth(str(tmp_path / "store")).by_depth(2).tolist() == pytest.approx([0, 0.75, 1])


def test_slices_finer_than_groups_are_shown_beside_as_many_slices_as_groups(capsys: Output) -> None:
    arguments = ["plan", "--shards", "2", "--slices", "4", "--budget", "2", "--groups", "2", "--layers", "12"]
    fine, *_, coarse = document(capsys, *arguments)["planners"]
    assert (len(fine["sequences"][0]), len(coarse["sequences"][0])) == (4, 2)
    # a stage of two halves of the blocks has the adapters of six of them
    assert fine["snapshot_bytes"] == 2 * 2 * 4 * 4 * (6 * 16 * 16 * 768 + 10 * 769)


def test_without_rows_shards_and_slices_are_expected(capsys: Output) -> None:
    assert main(["plan", "--budget", "2"]) == 2
    assert "Expected --shards and --slices" in capsys.readouterr().err


YEARS = ["plan", "--rows", "50000", "--shards", "5", "--slices", "4"]


def test_years_show_what_serves_and_mark_the_cheapest(capsys: Output) -> None:
    found = document(capsys, *YEARS, "--quality", "0.8")
    cheapest = found["stores"][found["cheapest"]]
    fitting = [store for store in found["stores"] if store["low"] >= 0.8]
    assert cheapest["compute"] == min(store["compute"] for store in fitting)
    assert {(store["budget"], store["epochs"]) for store in found["stores"]} == {
        (budget, epochs) for budget in (1, 2, 4) for epochs in ("full", "sisa")
    }


def test_years_are_shown_as_a_table(capsys: Output) -> None:
    assert main([*YEARS, "--budget", "1", "--refit", "4w", "never", "--years", "0.5", "--quality", "0.99"]) == 0
    out = capsys.readouterr().out
    assert "never" in out
    assert "28" in out
    assert "None of these serves 99% on 95 of 100 days" in " ".join(out.split())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--refit", "weekly"], "such as 7d"),
        (["--refit", "0d"], "such as 7d"),
        (["--refit"], "without a period"),
        (["--quality", "90"], "at most 1"),
        (["--years", "0"], "at least a day"),
        (["--units", "9"], "Leave these out, or leave --rows out"),
    ],
)
def test_years_that_cannot_be_played_are_refused(capsys: Output, wrong: list[str], message: str) -> None:
    assert main([*YEARS, *wrong]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


PRIORS = {
    "numbers.json": ("[1, 1, 2]", [0.25, 0.25, 0.5]),
    "lines.csv": ("1\n1\n2\n", [0.25, 0.25, 0.5]),
    "line.csv": ("1, 1, 2\n", [0.25, 0.25, 0.5]),
    "places.json": ("[[1, 0, 0], [1, 1, 1]]", [[0.25, 0, 0], [0.25, 0.25, 0.25]]),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_by_slice_are_read_and_scaled(tmp_path: Path, name: str) -> None:
    text, expected = PRIORS[name]
    path = tmp_path / name
    path.write_text(text)
    assert read_prior(path, Partition(2, 3)).tolist() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"ann": 3, "17": 1}'), ("a.csv", "subject,prior\nann,3\n17,1\n")]
)
def test_priors_by_subject_are_summed_where_the_subjects_are(tmp_path: Path, name: str, text: str) -> None:
    path, partition = tmp_path / name, Partition(2, 3)
    path.write_text(text)
    found = read_prior(path, partition)
    place = partition.place("ann")
    assert found[place.shard][place.slice] >= 0.75  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    "text", ["", "{", "[1, -1, 2]", "[1, 2]", '["a", 1, 2]', '{"ann": "x"}', "[0, 0, 0]", "3", "[NaN, 1, 1]"]
)
def test_priors_that_are_none_are_refused(tmp_path: Path, text: str, capsys: Output) -> None:
    path = tmp_path / "prior.json"
    path.write_text(text)
    assert main(["plan", "--shards", "2", "--slices", "3", "--budget", "1", "--prior", str(path)]) == 2
    assert "prior" in capsys.readouterr().err


def test_a_prior_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.csv cannot be read"):
        read_prior(tmp_path / "nowhere.csv", Partition(1, 1))


def test_a_simulation_shows_curves_with_intervals_for_each_planner(capsys: Output) -> None:
    assert main([*SIMULATE, "--sequences", "optimal", "sisa"]) == 0
    out = capsys.readouterr().out
    assert "optimal" in out
    assert "sisa" in out
    assert "3.00 ± 0.00" in out


def test_a_simulation_as_json_has_every_point(capsys: Output) -> None:
    found = document(capsys, *SIMULATE, "--until", "8")
    assert [moment["requests"] for moment in found["planners"][0]["moments"]] == list(range(9))
    assert found["planners"][0]["lifetime"]["mean"] > 0


def test_a_simulation_draws_its_curves(tmp_path: Path) -> None:
    picture = tmp_path / "left.png"
    assert main([*SIMULATE, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("requester", [["adaptive"], ["subject", "--sizes", "5"], ["sample", "--sizes", "5"]])
def test_every_requester_plays(capsys: Output, requester: list[str]) -> None:
    found = document(capsys, *SIMULATE, "--requester", *requester)
    assert found["planners"][0]["moments"][-1]["length"]["mean"] < 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--plot", "left.txt"], "is unknown"),
        (["--until", "0"], "at least 1"),
        (["--requester", "subject"], "sizes are missing"),
        (["--trials", "1"], "trials"),
    ],
)
def test_what_cannot_be_simulated_is_refused(capsys: Output, wrong: list[str], message: str) -> None:
    assert main([*SIMULATE, *wrong]) == 2
    assert message in capsys.readouterr().err


def test_a_planner_that_is_none_is_refused_with_those_there_are(capsys: Output) -> None:
    assert main([*PLAN, "--budget", "1", "--sequences", "best"]) == 2
    assert "conditional" in capsys.readouterr().err
