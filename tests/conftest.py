"""Settings for all tests."""

import os
import tempfile

import pytest

# The models are so small that threads only wait for each other, ten times as long as they work on some machines. Set
# before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# glibc gives memory back to the system after every step of a small training, which doubles its CPU time. It reads these
# when a process starts, so they are for the workers of `pytest -n` and for the processes that tests start, which inherit
# them: pytest loads this file before it starts its workers.
for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
    os.environ.setdefault(name, "4294967296")

# where it is noted which configs are trusted: not the developer's own
_state = tempfile.TemporaryDirectory(prefix="s3t-tests-")
os.environ["XDG_STATE_HOME"] = _state.name


def pytest_configure(config: pytest.Config) -> None:
    """Choose the tier before the test modules, which ask for it, are imported."""
    from hypothesis import settings

    from tests import tiers

    tiers.quick = tiers.QUICK in config.option.markexpr
    # no deadline: several processes share a machine
    settings.register_profile("quick", max_examples=25, deadline=None)
    settings.register_profile("nightly", max_examples=100, deadline=None)
    settings.load_profile("quick" if tiers.quick else "nightly")
