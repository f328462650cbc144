"""The report: what a page says of a store, and what it must not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_s3t.cli.main import main
from lightning_s3t.reporting import StoreReport
from lightning_s3t.store import Store
from tests.reporting.html_page import Page
from tests.store.people_store import PEOPLE, UNITS, in_place, make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = make(tmp_path / "store")
    made.forget([in_place(0, 0)], request_id="case of user-3")
    made.forget([in_place(1, 1), in_place(1, 1, 1)])
    return made


def test_it_says_what_serves_and_what_was_asked(store: Store) -> None:
    page = Page(StoreReport.of(store).to_html())
    assert page.open == []
    assert "2 of 2 shards serve" in page.text
    assert "3 people forgotten" in page.text
    assert "2 requests" in page.text
    assert "restricted" not in page.text
    assert "Nothing is wrong" in page.text
    store.restrict([in_place(0, 2)])
    assert "1 person restricted" in Page(StoreReport.of(store).to_html()).text


def test_it_says_when_half_of_the_data_no_longer_serves(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        assert "Half of the data serves for about" in Page(StoreReport.of(store).to_html()).text
        store.forget([in_place(0, slice_) for slice_ in range(3)])
        store.forget([in_place(1, 2)])
        page = Page(StoreReport.of(store).to_html())
        assert "1 of 2 shards serve" in page.text
        assert "Less than half of the data serves now." in page.text


def test_it_has_no_id_no_hash_and_no_name_of_a_request(store: Store) -> None:
    html = StoreReport.of(store).to_html()
    hashes = [event.body.get("tombstones") for event in store.history() if event.kind == "request"]
    assert all(hash_ not in html for tombstones in hashes for hash_, _ in tombstones)
    assert not any(person in html for person in PEOPLE)
    assert not any(record.snapshot in html for record in store.alive().values())
    assert "case of" not in html


def test_it_says_against_whom_it_stands(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(StoreReport.of(store).to_html())
    assert "Threat model" in page.text
    for who in ("A crash at any point", "A holder of the store's key", "The author of this report"):
        assert who in page.text
    assert "This store's key lies in its folder" in page.text
    assert "which was checked for it" in page.text
    store.path.joinpath("subject.key").rename(store.path.parent / "subject.key")
    page = Page(StoreReport.of(store, verify=False).to_html())
    assert "This store's key is not in its folder" in page.text
    assert "which was not checked for it" in page.text


def test_it_loads_nothing_and_runs_nothing(store: Store) -> None:
    page = Page(StoreReport.of(store).to_html())
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert not any(name in ("src", "href", "xlink:href") or name.startswith("on") for _, name, _ in page.attributes)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_same_store_gives_the_same_page(store: Store) -> None:
    assert StoreReport.of(store).to_html() == StoreReport.of(store).to_html()


def test_what_others_have_written_into_a_store_is_shown_and_not_run(store: Store) -> None:
    store.settings["model"] = {"class": "<script>alert(1)</script>"}
    html = StoreReport.of(store, verify=False).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_what_is_wrong_comes_first_and_the_command_exits_with_1(store: Store, tmp_path: Path) -> None:
    snapshot = next(iter(store.alive().values())).snapshot
    store.close()
    (tmp_path / "store" / "snapshots" / f"{snapshot}.safetensors").write_bytes(b"other")
    (tmp_path / "store" / "stranger.txt").write_text("what is this?")
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "store"), "--output", str(page)]) == 1
    assert "stranger.txt" in page.read_text()


def test_an_empty_store_has_a_report_too(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", {"partition": {"shards": 2, "slices": 3, "seed": 0}}) as store:
        page = Page(StoreReport.of(store).to_html())
    assert "No fit has come yet." in page.text
    assert "No request was made yet." in page.text


def test_a_store_that_serves_nothing_says_so(tmp_path: Path) -> None:
    with make(tmp_path / "store") as store:
        store.forget([in_place(shard, slice_) for shard in range(2) for slice_ in range(3)])
        report = StoreReport.of(store)
        assert report.outlook is None
        assert report.overview.served_share == 0
        assert "2 of 2 shards serve nothing" in Page(report.to_html()).text


def test_the_command_refuses_a_page_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--output", "report.pdf"]) == 2
    assert "Expected the name of the report to end in .html" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser Chromium")
def test_a_browser_draws_it(store: Store, tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(StoreReport.of(store).to_html())
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 10_000


def test_units_of_no_fit_have_no_score_or_rows(store: Store) -> None:
    report = StoreReport.of(store)
    assert {one.unit for one in report.serving} <= set(UNITS)
    assert report.scores == (None, None, None)
