"""SIGKILL at every step that touches the disk: nothing acknowledged is lost, nothing revoked comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.test_store import UNITS, person_in

SCRIPT = """
import itertools, os, signal, sys
from pathlib import Path
from lightning_s3t.plan import UnitId
from lightning_s3t.store import Store
from tests.store.test_store import SETTINGS, fill, person_in, tensors

top, action = Path(sys.argv[1]), sys.argv[2]
fatal = calls = 0

def counted(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper

class Counting:
    def __init__(self, connection):
        self.connection = connection
        self.execute, self.executemany = counted(connection.execute), counted(connection.executemany)

def run(folder):
    store = Store.open(folder / "store")
    for owner, name in ((Path, "unlink"), (Path, "open"), (os, "replace"), (os, "fsync")):
        setattr(owner, name, counted(getattr(owner, name)))
    store._ledger._connections[os.getpid()] = Counting(store._ledger.connection)
    if action == "forget":
        store.forget([person_in(0, 1)])
    elif action == "drop":
        store.drop([UnitId(0, (1,))])
    else:
        with store.fit_lock():
            attempt = store.start_unit(UnitId(0, (0,)), "new key")
            attempt.register_file(folder / "new.ckpt")
            (folder / "new.ckpt").write_bytes(b"x")
            attempt.commit(tensors(77), {"new": True})

for fatal in itertools.count(1):
    folder = top / str(fatal)
    with Store.create(folder / "store", SETTINGS) as store:
        fill(store, folder)
    child = os.fork()
    if child == 0:
        run(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
print(fatal)
"""


@pytest.mark.parametrize("action", ["forget", "commit", "drop"])
def test_a_kill_at_any_step_leaves_the_store_whole(tmp_path: Path, action: str) -> None:
    person, reached = person_in(0, 1), {unit for unit in UNITS if unit.shard == 0 and 1 in unit.prefix}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), action],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    assert result.returncode == 0, result.stderr
    last = int(result.stdout)
    assert last > 10, "the kills went past what they should hit"
    for fatal in range(1, last + 1):
        folder, survived = tmp_path / str(fatal), fatal == last
        with Store.open(folder / "store") as store:
            alive = store.alive()
            for unit in alive:
                store.load(unit)
            digests = {record.snapshot for record in alive.values()}
            assert {path.stem for path in (folder / "store" / "snapshots").iterdir()} == digests
            checkpoints = {path.name for path in folder.glob("*.ckpt")}
            kept = {Path(file["path"]).name for record in alive.values() for file in record.provenance["files"]}
            assert checkpoints == kept
            if action == "forget":
                forgotten = store.forgotten([person]) == {person}
                assert set(alive) == set(UNITS) - (reached if forgotten else set())
                assert forgotten or not survived
                if forgotten:
                    assert store.receipts()[0].erased_files == 2 * len(reached)
            elif action == "drop":
                assert set(UNITS) - set(alive) in (set(), {UnitId(0, (1,)), UnitId(0, (1, 0))})
            else:
                assert set(alive) == set(UNITS)
                assert alive[UnitId(0, (0,))].key in ("key-0/0", "new key")
                assert not survived or alive[UnitId(0, (0,))].key == "new key"
