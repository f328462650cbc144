"""Several handles of a store in one process: what one of them does must not blind another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lightning_s3t.store import Store
from tests.store.people_store import SETTINGS, in_place, make


def forget_elsewhere(path: Path, person: str) -> None:
    code = f"from lightning_s3t.store import Store\nwith Store.open({str(path)!r}) as store: store.forget([{person!r}])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_store_that_a_fit_opens_again_still_sees_requests_of_other_processes(tmp_path: Path) -> None:
    """POSIX ends all of a process's locks on a file when it closes any descriptor of it, SQLite's too."""
    path = tmp_path / "store"
    make(path).close()
    with Store.open(path) as served:
        assert served.request_number == 0
        Store.create(path, SETTINGS).close()  # as a fit does in a script that serves the model too
        for number, person in enumerate((in_place(0, 0), in_place(1, 1)), start=1):
            forget_elsewhere(path, person)
            assert served.request_number == number
        assert served.forgotten([in_place(1, 1)])
