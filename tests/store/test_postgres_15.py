"""PostgreSQL 15, from Debian: the tests of a ledger in PostgreSQL, with that server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres_server import VARIABLE

PROGRAMS = Path("/usr/lib/postgresql/15")
TESTS = {
    "test_ledger_contract.py": "postgres",
    "test_postgres_store.py": "",
    "test_postgres_crashes.py": "",
    "test_drill.py": "",
    "test_copying.py": "copy_is_what_the_store_was",
}


@pytest.mark.nightly
@pytest.mark.timeout(1800)  # a whole file each
@pytest.mark.skipif(not (PROGRAMS / "bin" / "initdb").exists(), reason="needs Debian's package postgresql-15")
@pytest.mark.parametrize("name", TESTS)
def test_what_holds_with_the_newest_server_holds_with_the_oldest(name: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "-k",
            TESTS[name],
            Path(__file__).with_name(name),
        ],
        env={**os.environ, VARIABLE: str(PROGRAMS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
