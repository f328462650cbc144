"""`python -m lightning_s3t` is `s3t`."""

import sys

from lightning_s3t.cli import main

if __name__ == "__main__":
    sys.exit(main())
