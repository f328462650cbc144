"""A store that is moved, renamed, copied or restored: it finds its checkpoints or says so, and never takes another's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lightning_s3t.core.receipts import Receipt
from lightning_s3t.store import Store
from tests.store.people_store import PEOPLE, SETTINGS, UNITS, build, session


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a store and, beside it, a checkpoint for each unit."""
    make_project(tmp_path / "project")
    return tmp_path / "project"


def make_project(project: Path) -> None:
    (project / "checkpoints").mkdir(parents=True)
    with Store.create(project / "store", SETTINGS) as store:
        session(store).register(PEOPLE)
        for number, unit in enumerate(UNITS):
            build(store, unit, number, project / "checkpoints" / f"{number}.ckpt")


def checkpoints(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "checkpoints").iterdir())


def forget_everybody(store: Path) -> Receipt:
    with Store.open(store) as opened:
        return opened.forget(PEOPLE)


def problems(store: Path) -> tuple[str, str]:
    with Store.open(store) as opened:
        found = opened.verify()
    return "\n".join(found.problems), "\n".join(found.notes)


def test_a_project_that_was_moved_finds_its_checkpoints(project: Path, tmp_path: Path) -> None:
    project.rename(tmp_path / "moved")
    receipt = forget_everybody(tmp_path / "moved" / "store")
    assert checkpoints(tmp_path / "moved") == []
    assert (receipt.erased_files, receipt.missing_files, receipt.left_files) == (2 * len(UNITS), 0, 0)
    assert problems(tmp_path / "moved" / "store") == ("", "")


def test_a_project_that_was_moved_leaves_the_project_that_is_at_its_old_place(project: Path, tmp_path: Path) -> None:
    project.rename(tmp_path / "archived")
    make_project(project)  # with the same contents, as another fit of the same script has
    forget_everybody(tmp_path / "archived" / "store")
    assert len(checkpoints(project)) == len(UNITS)
    assert checkpoints(tmp_path / "archived") == []


def test_a_copy_of_the_store_leaves_the_checkpoints_and_says_so(project: Path) -> None:
    shutil.copytree(project / "store", project / "store-for-a-test")
    assert "belong to the store that this one was copied or moved from" in problems(project / "store-for-a-test")[1]
    receipt = forget_everybody(project / "store-for-a-test")
    assert len(checkpoints(project)) == len(UNITS)
    assert (receipt.erased_files, receipt.left_files) == (len(UNITS), len(UNITS))
    assert "0.ckpt should have been erased with request 1 but still exists" in problems(project / "store-for-a-test")[0]
    assert problems(project / "store") == ("", "")


def test_a_copy_of_the_project_erases_its_own_checkpoints_alone(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "copy")
    forget_everybody(tmp_path / "copy" / "store")
    assert checkpoints(tmp_path / "copy") == []
    assert len(checkpoints(project)) == len(UNITS)


def test_a_copy_that_has_lost_the_times_of_its_files_names_its_checkpoints(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "copy", copy_function=shutil.copyfile)
    receipt = forget_everybody(tmp_path / "copy" / "store")
    assert receipt.left_files == len(checkpoints(tmp_path / "copy")) == len(UNITS)
    assert "0.ckpt was to be erased with request 1" in problems(tmp_path / "copy" / "store")[0]


def test_a_store_that_was_renamed_finds_its_checkpoints_where_they_are(project: Path) -> None:
    (project / "store").rename(project / "old-store")
    forget_everybody(project / "old-store")
    assert checkpoints(project) == []


def test_a_project_that_was_restored_in_its_place_finds_its_checkpoints(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "backup")
    shutil.rmtree(project)
    shutil.copytree(tmp_path / "backup", project)
    forget_everybody(project / "store")
    assert checkpoints(project) == []


def test_an_attempt_that_was_cut_before_a_move_is_named(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "copy")  # so that the folder of the store is another
    with Store.open(project / "store") as store:
        attempt = session(store).start_unit(UNITS[0], "key")
        attempt.register_file(project / "checkpoints" / "cut.ckpt")
        (project / "checkpoints" / "cut.ckpt").write_text("half a checkpoint")
    shutil.rmtree(tmp_path / "copy" / "store")
    shutil.copytree(project / "store", tmp_path / "copy" / "store")
    assert "cut.ckpt was to be erased with a unit that is gone" in problems(tmp_path / "copy" / "store")[0]
    assert "cut.ckpt" in checkpoints(project)
    Store.open(project / "store").close()
    assert "cut.ckpt" not in checkpoints(project)


def test_a_checkpoint_that_is_not_there_is_counted(project: Path) -> None:
    (project / "checkpoints" / "0.ckpt").unlink()
    assert problems(project / "store")[0] == ""
    assert "1 registered files are missing" in problems(project / "store")[1]
    receipt = forget_everybody(project / "store")
    assert (receipt.erased_files, receipt.missing_files) == (2 * len(UNITS) - 1, 1)


def test_a_checkpoint_that_was_changed_is_left_counted_and_named(project: Path) -> None:
    changed = project / "checkpoints" / "0.ckpt"
    changed.write_text("another run's")
    assert f"{changed} differs from the registered file" in problems(project / "store")[0]
    receipt = forget_everybody(project / "store")
    assert (receipt.erased_files, receipt.left_files) == (2 * len(UNITS) - 1, 1)
    assert checkpoints(project) == ["0.ckpt"]
    assert f"{changed} was to be erased with request 1" in problems(project / "store")[0]
    changed.unlink()  # by hand, as the message says
    with Store.open(project / "store") as store:
        assert store.verify().passed
        assert store.receipts()[0].left_files == 0
        assert store.has_given(receipt)


def test_verify_reads_a_checkpoint_whose_time_was_set_back(project: Path) -> None:
    changed = project / "checkpoints" / "0.ckpt"
    before = changed.stat()
    changed.write_bytes(b"y" * before.st_size)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert f"{changed} differs from the registered file" in problems(project / "store")[0]


def test_a_checkpoint_that_was_only_touched_is_erased(project: Path) -> None:
    os.utime(project / "checkpoints" / "0.ckpt")
    assert forget_everybody(project / "store").left_files == 0
    assert checkpoints(project) == []


def test_a_checkpoint_that_its_unit_took_away_again_is_nobodys(project: Path) -> None:
    first = project / "checkpoints" / "epoch=0.ckpt"
    with Store.open(project / "store") as store:
        attempt = session(store).start_unit(UNITS[0], "key")
        attempt.register_file(first)
        first.touch()
        first.unlink()  # as with save_top_k
        attempt.commit({}, {})
    receipt = forget_everybody(project / "store")
    assert receipt.missing_files == 0


def test_what_others_put_where_a_unit_took_its_checkpoint_away_is_left(project: Path) -> None:
    first = project / "checkpoints" / "epoch=0.ckpt"
    with Store.open(project / "store") as store:
        attempt = session(store).start_unit(UNITS[0], "key")
        attempt.register_file(first)
        attempt.commit({}, {})
    first.write_text("another run's")
    assert forget_everybody(project / "store").left_files == 1
    assert first.exists()


def test_a_link_to_a_checkpoint_is_known_by_where_it_points(project: Path) -> None:
    last = project / "checkpoints" / "last.ckpt"
    with Store.open(project / "store") as store:
        attempt = session(store).start_unit(UNITS[0], "key")
        attempt.register_file(last)
        last.symlink_to("0.ckpt")
        attempt.commit({}, {})
    last.unlink()
    last.symlink_to("../thesis.tex")
    assert f"{last} differs from the registered file" in problems(project / "store")[0]


def test_a_link_on_the_way_does_not_lead_a_moved_store_elsewhere(project: Path, tmp_path: Path) -> None:
    project.rename(tmp_path / "moved")
    shutil.move(tmp_path / "moved" / "checkpoints", tmp_path / "elsewhere")
    (tmp_path / "moved" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    forget_everybody(tmp_path / "moved" / "store")
    assert len(os.listdir(tmp_path / "elsewhere")) == len(UNITS)
