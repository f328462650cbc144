"""One run: a method trained with one seed, and the effect of requests on it."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_s3t.callbacks import Unlearning
from lightning_s3t.comparison.asking import Answers, Asker
from lightning_s3t.comparison.relearning import relearn
from lightning_s3t.comparison.rows import ComparedRows
from lightning_s3t.core.documents import STRICT
from lightning_s3t.core.floor import PRETRAINED
from lightning_s3t.engine.elsewhere import writing_elsewhere
from lightning_s3t.errors import S3TError
from lightning_s3t.methods import UnlearningMethod
from lightning_s3t.serving.module import EnsembleModule
from lightning_s3t.tuning.module_copy import copy_module

PARTS = ("test", "retained", "forgotten")


@dataclass(frozen=True)
class Relearning:
    """The settings of relearning.

    Attributes:
        goal: The accuracy on forgotten rows that counts as known; None until the reference has been run.
        learning_rate: Adam's.
        most: Steps at most.
    """

    goal: float | None
    learning_rate: float = 1e-3
    most: int = 100


@dataclass
class Run:
    """The result of a run; outputs for rows are stored next to it.

    Attributes:
        label: The method's label.
        arguments: The method, with its arguments.
        seed: The seed.
        fit_seconds: Duration of the first fit.
        fit_cpu_seconds: CPU time of the processes that trained in it.
        storage_bytes: Size of the store after it.
        request_seconds: Duration of each request.
        jobs: By the number of requests, how long the fit took that carried them out.
        lasted: After how many requests nothing was left that serves.
        relearn_steps: Steps until the forgotten rows were known again.
        relearned: Whether they were.
        refit_seconds: Duration of a fit after all requests.
        refit_test: Accuracy on test rows after it.
        memory_bytes: Peak memory of a process that trains.
        device_memory_bytes: The same on the GPU.
        refused: Why the run did not get to the end.
    """

    __pydantic_config__ = STRICT

    label: str
    arguments: str
    seed: int
    fit_seconds: float | None = None
    fit_cpu_seconds: float | None = None
    storage_bytes: int | None = None
    request_seconds: list[float] = field(default_factory=list)
    jobs: dict[str, float] = field(default_factory=dict)
    lasted: int | None = None
    relearn_steps: int | None = None
    relearned: bool | None = None
    refit_seconds: float | None = None
    refit_test: float | None = None
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    refused: str | None = None

    def to_json(self) -> str:
        """Return the run as a JSON document."""
        return json.dumps(asdict(self), indent=1)


class Script:
    """The script of the comparison: its trainer, module and data.

    Args:
        trainer: The trainer, with an Unlearning callback that says who owns each row.
        module: The module.
        datamodule: The data.
        callback: The callback.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: pl.LightningDataModule, callback: Unlearning
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.callback = callback

    def unlearning(self, method: UnlearningMethod, store: Path, seed: int) -> Unlearning:
        """Return a callback like the script's own, with another method, store and seed.

        Args:
            method: The method.
            store: The store.
            seed: The seed.
        """
        config = self.callback.config
        return Unlearning(
            method,
            store,
            subjects=config.subjects,
            layers=config.layers,
            head=config.head,
            adapter=config.adapter,
            seed=seed,
            partition="public",  # so that the same call gives the same numbers
            isolation=self.callback.isolation,
            parallel_units=config.units.parallel_units,
            floor=config.floor if method.response == "revoke" else None,
        )

    def fit(self, unlearning: Unlearning, scratch: Path) -> float:
        """Fit with a callback instead of the script's own, and return the duration in seconds.

        Args:
            unlearning: The callback.
            scratch: The folder for logs, checkpoints and measurements.
        """
        own = self.trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in own if not isinstance(callback, (Unlearning, ProgressBar))]
        usage = _Usage(scratch / "usage")
        try:
            self.trainer.callbacks = [unlearning, *others, usage]  # type: ignore[attr-defined]
            with writing_elsewhere(self.trainer, scratch):
                start = time.perf_counter()
                self.trainer.fit(self.module, datamodule=self.datamodule)
                return time.perf_counter() - start
        finally:
            self.trainer.callbacks = own  # type: ignore[attr-defined]


def make_run(
    script: Script,
    asker: Asker,
    rows: ComparedRows,
    label: str,
    method: UnlearningMethod,
    seed: int,
    measured_after: Sequence[int],
    relearning: Relearning,
    scratch: Path,
    step: Callable[[str], None],
) -> tuple[Run, dict[str, Tensor]]:
    """Train a method, and carry the requests out.

    An error that the method raises on purpose ends the run and is its result; other errors are raised.

    Args:
        script: The script.
        asker: Asks models.
        rows: The subjects who ask, and the measured rows.
        label: The method's label.
        method: The method.
        seed: The seed.
        measured_after: After how many requests to measure, from 0 on.
        relearning: The settings of relearning.
        scratch: A folder for the store.
        step: Called with a description of the next step, once for each moment.

    Returns:
        The result, and the outputs for rows, by part, number of requests and kind.
    """
    run = Run(label, repr(method), seed)
    trial = _Trial(script, asker, rows, run, method, scratch)
    done = 0
    try:
        step("first fit")
        run.fit_seconds = trial.fit()
        run.fit_cpu_seconds = _Usage.read(scratch / "usage")[2]
        run.storage_bytes = sum(path.stat().st_size for path in trial.store.rglob("*") if path.is_file())
        trial.measure(0)
        for number in measured_after[1:]:
            step(f"request {number}")
            trial.forget(rows.requests[done:number])
            done = number
            if method.waits:
                run.jobs[str(number)] = trial.fit()
            trial.measure(number)
        trial.relearn(relearning)
        if method.response != "replace":
            step("fit after all requests")
            run.refit_seconds = trial.fit()
            run.refit_test = trial.test_accuracy()
    except S3TError as error:
        run.refused = str(error)
    run.memory_bytes, run.device_memory_bytes, _ = _Usage.read(scratch / "usage")
    return run, trial.answers


class _Trial:
    """A method's store, and the requests to it."""

    def __init__(
        self,
        script: Script,
        asker: Asker,
        rows: ComparedRows,
        run: Run,
        method: UnlearningMethod,
        scratch: Path,
    ) -> None:
        self._script = script
        self._asker = asker
        self._rows = rows
        self._run = run
        self._scratch = scratch
        self._method = method
        self.store = scratch / "store"
        self.answers: dict[str, Tensor] = {}

    def fit(self) -> float:
        return self._script.fit(self._script.unlearning(self._method, self.store, self._run.seed), self._scratch)

    def forget(self, subjects: Sequence[str]) -> None:
        """Request one subject after another, and record how long each takes, until other units serve."""
        with self._served() as served:
            for subject in subjects:
                start = time.perf_counter()
                served.forget([subject])
                self._run.request_seconds.append(time.perf_counter() - start)
                if self._run.lasted is None and self._method.response != "replace" and not _serves(served):
                    self._run.lasted = len(self._run.request_seconds)

    def measure(self, requests: int) -> None:
        """Query all rows; if nothing serves, there is nothing to record."""
        with self._served() as served:
            if not _serves(served):
                return
            for part in PARTS:
                found = self._asker.ask(served, getattr(self._rows, part))
                self.answers |= {
                    f"{part}/{requests}/scores": found.scores,
                    f"{part}/{requests}/correct": found.correct,
                }

    def test_accuracy(self) -> float | None:
        with self._served() as served:
            return self._asker.ask(served, self._rows.test).accuracy if _serves(served) else None

    def relearn(self, settings: Relearning) -> None:
        """Train the serving model on the forgotten rows."""
        with self._served() as served:
            if not served.survivors:
                return  # nothing, or a closed-form head
            goal = settings.goal
            if goal is None:
                goal = float(self.answers["forgotten/0/correct"].float().mean())
            calls = self._asker.record(served, self._rows.forgotten)
            networks = self._networks(served)
        device = calls[0].labels.device
        self._run.relearn_steps, self._run.relearned = relearn(
            [network.to(device) for network in networks],
            calls,
            goal,
            settings.learning_rate,
            settings.most,
            self._run.seed,
        )

    def _networks(self, served: EnsembleModule) -> list[nn.Module]:
        """Return each shard's survivor as a separate network."""
        folder = self._scratch / "exported"
        networks = []
        try:
            for exported in served.export(folder, each_shard=True):
                module = copy_module(self._script.module)
                module.load_state_dict(load_file(exported.path))
                networks.append(module.get_submodule(served.network_path))
        finally:
            for path in folder.glob("*"):
                path.unlink()
        return networks

    @contextmanager
    def _served(self) -> Iterator[EnsembleModule]:
        with closing(EnsembleModule.from_store(self.store, self._script.module)) as served:
            yield served


def answers_of(answers: Mapping[str, Tensor], part: str, requests: int) -> Answers | None:
    """Return the answers to a part of the rows after some requests; None where nothing served.

    Args:
        answers: All answers of a run.
        part: "test", "retained" or "forgotten".
        requests: Number of requests.
    """
    scores = answers.get(f"{part}/{requests}/scores")
    return None if scores is None else Answers(scores, answers[f"{part}/{requests}/correct"])


def _serves(served: EnsembleModule) -> bool:
    floor = served.store.heads().get(PRETRAINED)
    return bool(served.survivors) or (floor is not None and floor.serves)


class _Usage(pl.Callback):
    """Records the peak memory and CPU time of the processes that train units, one line of a file for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._script = os.getpid()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called when a run ends: in a unit's process, records its usage."""
        if os.getpid() == self._script:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        host = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        with self._path.open("a") as file:
            file.write(f"{host} {device} {used.ru_utime + used.ru_stime}\n")

    @staticmethod
    def read(path: Path) -> tuple[int | None, int | None, float | None]:
        """Return the highest peaks on the host and on the GPU, and the sum of CPU times; None if missing."""
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        host = max((int(line[0]) for line in lines), default=0)
        device = max((int(line[1]) for line in lines), default=0)
        return host or None, device or None, sum(float(line[2]) for line in lines) if lines else None
