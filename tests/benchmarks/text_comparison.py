"""Methods compared on a text task: `python -m tests.benchmarks.text_comparison [--thorough] [--output FOLDER]`.

The task is `text` of `tests.benchmarks.accuracy`: which of eight packages is a docstring from? A small BERT is first trained
on the docstrings of eight others, and the methods are those of `s3t compare` on the digits, and a linear head in closed
form. Writes `comparison.json`, `comparison.md` and `comparison.png`; finished runs are kept in the folder, and the same
command continues there. It has no mark.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.data import DataLoader

from lightning_s3t import S3T, compare
from lightning_s3t.zoo.demo.comparing import METHODS
from lightning_s3t.zoo.demo.training import make_trainer
from tests.benchmarks.accuracy import Owned, compute_quietly, make_text

EPOCHS, REQUESTS = 20, 100
ALL_METHODS = {**METHODS, "closed_form": "closed_form", "layers": {"name": "closed_form", "layers": 4}}


def rows_of(batch: dict[str, Any]) -> Owned:
    """Return the rows of a batch."""
    count = len(batch["labels"])
    return Owned([{key: value[row] for key, value in batch.items()} for row in range(count)], [""] * count)


def main(arguments: list[str]) -> int:
    """Compares, prints, and returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thorough", action="store_true", help="8 seeds, and attacks with shadow models: hours")
    parser.add_argument("--output", type=Path, default=Path("build/text-comparison"))
    options = parser.parse_args(arguments)
    compute_quietly()
    task = make_text(0)
    # the comparison has its own stores
    s3t = S3T("unused", 3, 4, 2, subjects="owners", adapter=None, seed=0, parallel_units=2)
    found = compare(
        make_trainer(EPOCHS, s3t),
        task.model,
        methods=ALL_METHODS,
        requests=REQUESTS,
        output=options.output,
        thorough=options.thorough,
        train_dataloaders=DataLoader(task.private, task.batch, shuffle=True),
        test_dataloaders=DataLoader(rows_of(task.test), 100),
    )
    (options.output / "comparison.json").write_text(found.to_json() + "\n")
    (options.output / "comparison.md").write_text(found.to_markdown())
    found.plot().savefig(options.output / "comparison.png", dpi=110)
    Console().print(str(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
