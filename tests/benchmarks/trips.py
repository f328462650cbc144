"""How far a reader has to walk: the files of the package that a call goes through, and how often it changes files.

`python -m tests.benchmarks.trips` prints both for `fit`, `forget`, a served answer and `s3t plan`. A hop is a change of
file between one Python call inside the package and the next, in the script's main thread; a way is one that is made at
least once, from one function to another. Hops grow with rows and units, and in a fit with the time that it takes, since it
looks for requests ten times a second; ways do not. With `--most N` the ways are listed that are gone most often: where two
files talk much, one may belong into the other.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

import lightning_s3t
from lightning_s3t import S3T, EnsembleModule
from lightning_s3t.cli.main import main as s3t
from tests.people import Classifier, People, PeopleData

_PACKAGE = os.path.dirname(lightning_s3t.__file__) + os.sep
_PLAN = ["plan", "--shards", "5", "--slices", "6", "--budget", "3", "--layers", "12"]


@dataclass
class Trip:
    """What was called.

    Attributes:
        files: How often each file was entered from another.
        hops: How often one function was followed by another of another file.
    """

    files: Counter[str] = field(default_factory=Counter)
    hops: Counter[tuple[str, str]] = field(default_factory=Counter)


@contextmanager
def recorded() -> Iterator[Trip]:
    """Record the calls within a block."""
    trip, last = Trip(), ("", "")

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal last
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(_PACKAGE):
            return
        here = file.removeprefix(_PACKAGE), frame.f_code.co_name
        if here[0] != last[0]:
            trip.files[here[0]] += 1
            if last[0]:
                trip.hops[":".join(last), ":".join(here)] += 1
        last = here

    sys.setprofile(note)
    try:
        yield trip
    finally:
        sys.setprofile(None)


def fit(store: Path) -> Trip:
    """A fit of 24 units of a small network, in processes of their own."""
    # public places: how many units a request reaches does not depend on a secret
    callback = S3T(store, shards=3, slices=4, budget=2, subjects="owners", adapter=None, partition="public")
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=store.parent,
    )
    module, data = Classifier(), PeopleData(People.make(96, rows=1), batch_size=2)
    with recorded() as trip:
        trainer.fit(module, datamodule=data)
    return trip


def trips() -> dict[str, Trip]:
    """Return the trips by name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        fit(Path(folder, "warm"))  # what is imported, and kept, at the first call is not part of a trip
        found["fit, 24 units"] = fit(Path(folder, "store"))
        found["fit, nothing to train"] = fit(Path(folder, "store"))
        with EnsembleModule.from_store(Path(folder, "store"), Classifier()) as served:
            row = torch.randn(1, 8)
            served(row)
            with recorded() as found["served(x)"]:
                served(row)
            with recorded() as found["served.forget(ids)"]:
                served.forget(["user-0"])
    for _ in range(2):  # the first imports
        with recorded() as found["s3t plan"], contextlib.suppress(SystemExit):
            s3t(_PLAN)
    return found


def main() -> int:
    """Print the trips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=0, help="how many changes of file to list for each trip")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = trips()
    for name, trip in found.items():
        print(f"{name:22} {len(trip.files):4} files {trip.hops.total():6} hops {len(trip.hops):5} ways")
        for (one, other), times in trip.hops.most_common(arguments.most):
            print(f"    {times:5}  {one} -> {other}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
