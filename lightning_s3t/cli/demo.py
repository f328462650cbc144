"""The command `demo`."""

from __future__ import annotations

from pathlib import Path

from lightning_s3t.errors import ConfigurationError, S3TError


def demo(*, output: Path = Path("s3t-demo"), seed: int = 0, epochs: int | None = None, quick: bool = False) -> None:
    """Show the whole story on real data, offline, in about two minutes: train by slices, forget, check the guarantees.

    Args:
        output: The folder for the picture.
        seed: Seed of everything random.
        epochs: Epochs of each stage of S3T; by default 8.
        quick: Tiny sizes, to see the course of things in seconds; the accuracies mean nothing then.
    """
    from rich.console import Console

    _check_packages()
    _check(output, seed, epochs)
    console = Console()
    with console.status("Loading Lightning and PEFT"):
        from dataclasses import replace

        from lightning_s3t.zoo.demo import QUICK, DemoSettings, run_demo
    settings = replace(QUICK if quick else DemoSettings(), seed=seed)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    result = run_demo(output, settings, console)
    broken = [check.name for check in result.checks if not check.holds]
    if broken:
        raise S3TError(f"These guarantees do not hold on this machine: {', '.join(broken)}.")


def _check_packages() -> None:
    from lightning_utilities.core.imports import RequirementCache

    missing = [package for package in ("sklearn", "matplotlib", "timm") if not RequirementCache(module=package)]
    if missing:
        raise ConfigurationError(f'The demo needs {", ".join(missing)}: pip install "lightning-s3t[demo]"')


def _check(output: Path, seed: int, epochs: int | None) -> None:
    if seed < 0:
        raise ConfigurationError(f"Expected argument `seed` to be a non-negative integer but got {seed}.")
    if epochs is not None and epochs < 1:
        raise ConfigurationError(f"Expected argument `epochs` to be a positive integer but got {epochs}.")
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"Expected argument `output` to be a folder but {output} is a file. Give another.")
