"""The environment of each group: a virtual one of its own, with the project and the group's libraries."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]

GROUPS: dict[str, tuple[str, ...]] = {
    "lightning_features": (),
    "networks": (),
    "examples": (),
    "hydra_template": ("hydra-core",),
    "segmentation": ("segmentation-models-pytorch", "torchgeo", "requests"),
    "libraries": (
        "lightly",
        "pytorch-forecasting",
        "torch-geometric",
        "hydra-core",
        "finetuning-scheduler",
        "wandb",
        "mlflow-skinny[db]",
    ),
    "tabular": ("pytorch-tabular", "requests"),
    "anomaly": ("anomalib",),
    "forecasting": ("neuralforecast",),
    "science": ("chemprop", "gluonts[torch]"),
    "more_libraries": (
        "monai",
        "kornia",
        "sentence-transformers",
        "pytorch-metric-learning",
        "x-transformers",
        "ncps",
        "lion-pytorch",
        "schedulefree",
        "torchsampler",
    ),
}


def environment(group: str, folder: Path) -> Path:
    """Make a group's environment, if it is not there yet.

    Args:
        group: The group.
        folder: Where to.

    Returns:
        Its interpreter.
    """
    place = folder / f"venv-{group}"
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        venv.create(place, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[dev]", "torchvision", *GROUPS[group]]
        subprocess.run(install, check=True)
        (place / "installed").touch()
    return python
