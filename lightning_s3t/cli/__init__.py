"""The `s3t` command."""

from lightning_s3t.cli.main import main

__all__ = ["main"]
