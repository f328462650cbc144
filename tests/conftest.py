"""Settings for all tests."""

import os

# The models are so small that threads only wait for each other, ten times as long as they work on some machines. Set
# before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
