"""Where activations are kept: in memory and in files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lightning_s3t.tuning.cache.activations import Activations, Buffers, FileBuffers, MemoryBuffers


@pytest.fixture(params=["memory", "disk"])
def buffers(request: pytest.FixtureRequest, tmp_path: Path) -> Buffers:
    return MemoryBuffers() if request.param == "memory" else FileBuffers(tmp_path / "cache")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64])
def test_what_is_kept_comes_back_to_the_last_bit(buffers: Buffers, dtype: torch.dtype) -> None:
    kept = Activations(buffers)
    rows = [{"x": (torch.randn(1, 3, 5) * 9).to(dtype), "mask": torch.rand(2) > 0.5} for _ in range(20)]
    for number, row in enumerate(rows):
        kept.put(number, row)
    for number, row in enumerate(rows):
        found = kept.get(number)
        assert found is not None
        assert all(torch.equal(found[name], row[name]) and found[name].dtype == row[name].dtype for name in row)


def test_the_oldest_go_when_there_is_no_room(buffers: Buffers) -> None:
    kept = Activations(buffers)
    kept.limit = 4 << 20
    for number in range(12):
        kept.put(number, {"x": torch.full((1 << 18,), float(number))})
    assert kept.held <= 5 << 20
    assert kept.get(0) is None
    last = kept.get(11)
    assert last is not None
    assert torch.equal(last["x"], torch.full((1 << 18,), 11.0))


def test_files_are_gone_when_it_is_closed(tmp_path: Path) -> None:
    kept = Activations(FileBuffers(tmp_path / "cache"))
    kept.put("row", {"x": torch.ones(3)})
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_once_the_files_are_removed_none_is_made_before_it_is_begun_anew(tmp_path: Path) -> None:
    kept = Activations(FileBuffers(tmp_path / "cache"))
    kept.put("before", {"x": torch.ones(3)})
    shutil.rmtree(tmp_path / "cache")
    kept.put("after", {"x": torch.ones(1 << 20)})
    before = kept.get("before")
    assert before is not None
    assert before["x"].tolist() == [1.0, 1.0, 1.0], "what is mapped stays readable"
    assert kept.get("after") is None
    assert list(tmp_path.iterdir()) == []
    kept.renew()
    assert kept.get("before") is None
    kept.put("again", {"x": torch.ones(3)})
    assert kept.get("again") is not None
    kept.close()
