"""The folder of a comparison: finished runs are kept there, so that a second call continues."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_s3t.comparison.run import Run
from lightning_s3t.core.documents import canonical, read_json
from lightning_s3t.errors import ConfigurationError

_SETTINGS, _LOCK, _RUNS, _WORK = "settings.json", "lock", "runs", "work"


class ComparisonFolder:
    """The files of a comparison: its settings, and a JSON file and the outputs of each run.

    The outputs show how well models know each row: the folder is personal data, like the rows themselves.

    Args:
        path: The folder; it is made.
        settings: The common settings of all runs, JSON-ready.

    Raises:
        ConfigurationError: It contains a comparison with other settings, or other files.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ConfigurationError(f"Expected argument `output` to be a folder but {path} is a file. Give another.")
        file = path / _SETTINGS
        if file.exists():
            _check_same(path, json.loads(file.read_text()), json.loads(canonical(settings)))
        elif path.exists() and any(path.iterdir()):
            raise ConfigurationError(
                f"The folder {path} holds files that are not part of a comparison. Expected a new folder, or one in "
                "which a comparison was started: give another `output`."
            )
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write(file, json.dumps(settings, indent=1, sort_keys=True))

    def load(self, label: str, seed: int, arguments: str) -> tuple[Run, dict[str, Tensor]] | None:
        """Return a run that is done, and its answers; None if it is not.

        Args:
            label: The method's label.
            seed: The run's seed.
            arguments: The method, with its arguments.

        Raises:
            ConfigurationError: It was done with other arguments.
        """
        file = self._file(label, seed)
        if not file.exists():
            return None
        try:
            run = read_json(Run, file.read_text())
        except ValueError as error:
            raise ConfigurationError(f"{file} cannot be read ({error}). Remove it, and the run is repeated.") from error
        if run.arguments != arguments:
            raise ConfigurationError(
                f"The comparison in {self.path} has {label!r} with the arguments {run.arguments}, but now it has "
                f"{arguments}. Use another label or another `output`, or remove {file.parent}."
            )
        return run, load_file(file.with_suffix(".safetensors"))

    def save(self, run: Run, answers: Mapping[str, Tensor]) -> None:
        """Save a run; it is finished once its JSON file exists.

        Args:
            run: The run.
            answers: The answers to rows, by name.
        """
        file = self._file(run.label, run.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in answers.items()}, file.with_suffix(".safetensors"))
        _write(file, run.to_json())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other comparisons out of the folder while the block runs.

        Raises:
            ConfigurationError: One is in it.
        """
        with (self.path / _LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"Another comparison is running in {self.path}. Wait for it to end, or give another `output`."
                ) from None
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a forked process has the file open too

    @contextmanager
    def working(self) -> Iterator[Path]:
        """Give an empty folder for stores; it goes when the block ends, or at the next call after a crash."""
        work = self.path / _WORK
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _file(self, label: str, seed: int) -> Path:
        return self.path / _RUNS / label / f"seed-{seed}.json"


def _check_same(path: Path, kept: Any, now: Any) -> None:
    names = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
    if names:
        differ = "; ".join(f"{name}: {kept.get(name)!r} there, {now.get(name)!r} now" for name in names)
        raise ConfigurationError(
            f"The comparison in {path} was started with other settings ({differ}), so its runs cannot be compared "
            "with new ones. Continue with the same settings, give another `output`, or remove the folder. (If the "
            "model's weights differ, seed the script before it creates the model.)"
        )


def _write(file: Path, text: str) -> None:
    half = file.with_suffix(".tmp")
    half.write_text(text)
    os.replace(half, file)
