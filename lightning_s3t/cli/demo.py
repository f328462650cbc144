"""The verb `demo`."""

from __future__ import annotations

from pathlib import Path

from lightning_s3t.errors import ConfigurationError, S3TError


def demo(output: Path = Path("s3t-demo"), seed: int = 0, quick: bool = False) -> None:
    """Show the whole story on real data, offline, in about two minutes: train by slices, forget, check the guarantees.

    Args:
        output: The folder for the picture.
        seed: What everything is drawn from.
        quick: Tiny sizes, to see the course of things in seconds; the accuracies mean nothing then.
    """
    from rich.console import Console

    console = Console()
    with console.status("Loading Lightning and PEFT"):
        try:
            from dataclasses import replace

            from lightning_s3t.demo import QUICK, DemoSettings, run_demo
        except ModuleNotFoundError as error:
            if error.name not in ("sklearn", "matplotlib"):
                raise
            raise ConfigurationError(f'The demo needs {error.name}: pip install "lightning-s3t[demo]"') from error
    result = run_demo(output, replace(QUICK if quick else DemoSettings(), seed=seed), console)
    broken = [check.name for check in result.checks if not check.holds]
    if broken:
        raise S3TError(f"These guarantees do not hold on this machine: {', '.join(broken)}.")
