"""Fits inside other programs: in a daemon, in joblib's processes, in a thread."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import joblib
import pytest

from tests.people import People, assert_bitwise_equal, fit, tensors_of

pytestmark = pytest.mark.nightly


def train(folder: Path) -> None:
    fit(folder / "store", People.make(), epochs=1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    train(folder)
    return folder / "store"


def test_in_a_daemon(tmp_path: Path, expected: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=train, args=(tmp_path,), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(expected))


def test_in_joblibs_processes(tmp_path: Path, expected: Path) -> None:
    folders = [tmp_path / str(number) for number in range(2)]
    joblib.Parallel(n_jobs=2)(joblib.delayed(train)(folder) for folder in folders)
    for folder in folders:
        assert_bitwise_equal(tensors_of(folder / "store"), tensors_of(expected))


def test_in_a_thread(tmp_path: Path, expected: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path,))
    thread.start()
    thread.join(120)
    assert_bitwise_equal(tensors_of(tmp_path / "store"), tensors_of(expected))
