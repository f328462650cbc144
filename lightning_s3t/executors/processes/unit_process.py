"""A unit's own process: it trains one unit from the state that the fit found, sends the result, and ends."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import sys
import sysconfig
import threading
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary

from lightning_s3t.engine.found_state.digest import changed
from lightning_s3t.engine.found_state.found_state import digest_memory
from lightning_s3t.engine.lightning_internals import fit_again, leave_signals_to_script, logged_step
from lightning_s3t.engine.muted_lightning import name_unit_in_logs, quiet
from lightning_s3t.engine.unit_training import FeatureTask, UnitTask, UnitTraining
from lightning_s3t.errors import UnsupportedError
from lightning_s3t.executors.processes.messages import (
    Advanced,
    Begin,
    Failed,
    FromUnit,
    Group,
    Noted,
    Read,
    ReadAll,
    Rehearse,
    Rehearsed,
    Trained,
    Warned,
    Writes,
)
from lightning_s3t.executors.processes.process_settings import ProcessSettings
from lightning_s3t.executors.processes.recorded_logs import RecordingLogger
from lightning_s3t.executors.progress import share_done
from lightning_s3t.plan import UnitId

_BETWEEN_ADVANCES = 0.5  # seconds
_BETWEEN_LOOKS = 0.5


def train_unit(objects: tuple[pl.Trainer, UnitTraining, ProcessSettings], connection: Connection) -> None:
    """Do the work of the process: train the unit that the script names, or rehearse a fit.

    Args:
        objects: The objects of the fit: the trainer, the unit training, torch's settings in the script's process.
        connection: To the script.
    """
    # its own process group, so that its data loaders end with it
    os.setpgid(0, 0)
    _die_with_parent()
    script = Script(connection)
    there = set(sys.modules)
    try:
        trainer, training, settings = objects
        settings.apply()
        training.in_own_process = True
        warnings.simplefilter("always")  # the script's filters decide
        warnings.showwarning = script.warn  # type: ignore[assignment]
        begin: Begin = pickle.loads(connection.recv_bytes())
        task = begin.task
        leave_signals_to_script(trainer)
        if begin.group is not None:
            _join(begin.group, trainer)
        with quiet(trainer):
            if isinstance(task, Rehearse):
                rehearsed = _rehearse(trainer, training)
                script.send(dataclasses.replace(rehearsed, modules=tuple(_installed(set(sys.modules) - there))))
            elif isinstance(task, FeatureTask):
                script.send(_read_features(trainer, training, task, script))
            else:
                script.send(_train(trainer, training, task, script))
    except BaseException as error:
        script.send(Failed.of(error))


class Script:
    """The process that runs the fit, seen from a unit's.

    Args:
        connection: To it.

    Attributes:
        scratch: The unit's folder for temporary files; None before the unit is known.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # checkpoints may be written by a thread
        self.scratch: Path | None = None
        self._advanced = time.monotonic()

    def send(self, message: FromUnit) -> None:
        """Send it a message.

        Args:
            message: What.
        """
        with self._lock:
            self._send(message)

    def note_file(self, path: Path) -> None:
        """Register a file for erasure; after this returns, the file may be written.

        Args:
            path: The file.

        Raises:
            UnsupportedError: The script runs on another machine, which does not have this folder.
        """
        with self._lock:
            self._send(Writes(str(path)))
            answer = pickle.loads(self._connection.recv_bytes())
            assert isinstance(answer, Noted)
        if answer.proof is not None:
            self._prove_shared(path, Path(answer.proof))

    def advance(self, trainer: pl.Trainer) -> None:
        """Report the unit's progress at intervals.

        Args:
            trainer: The trainer.
        """
        if time.monotonic() - self._advanced > _BETWEEN_ADVANCES:
            self._advanced = time.monotonic()
            self.send(Advanced(share_done(trainer)))

    def warn(self, message: Any, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        """Pass a warning on; replaces `warnings.showwarning`.

        Args:
            message: The warning.
            category: Its class.
            filename: The file that raised it.
            lineno: Likewise.
            more: Without effect.
        """
        try:
            pickle.dumps(category)
        except Exception:  # a class within a function: only the text matters
            category = UserWarning
        self.send(Warned(str(message), category, filename, lineno))

    def _prove_shared(self, path: Path, proof: Path) -> None:
        folder, there = path.parent, self.scratch is not None and self.scratch.is_dir()
        try:
            proof.unlink()
        except FileNotFoundError:
            there = False
        if not there:
            raise UnsupportedError(
                f"A callback on {socket.gethostname()} writes {path}, but the machine that runs the script does not "
                "see this folder or does not share the store's, so a request could not erase the file. Put both "
                f"({folder} and the store) on a file system that all machines mount at the same path, or write no "
                "files: Trainer(enable_checkpointing=False)."
            )

    def _send(self, message: FromUnit) -> None:
        # by value: tensors that torch sends through shared memory are lost if this process ends before they are read
        self._connection.send_bytes(cloudpickle.dumps(message))


def _join(group: Group, trainer: pl.Trainer) -> None:
    """Join a process group before the strategy would create one; it uses the existing one."""
    from torch.distributed import PrefixStore, TCPStore  # torch can be built without

    device = trainer.strategy.root_device
    store = TCPStore(group.address, group.port, trainer.world_size, is_master=False, wait_for_workers=False)
    torch.distributed.init_process_group(
        group.backend,
        store=PrefixStore(group.name, store),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        device_id=device if device.type != "cpu" else None,
    )


def _rehearse(trainer: pl.Trainer, training: UnitTraining) -> Rehearsed:
    trainer.enable_autolog_hparams = False
    digests = training.digest_rows() if trainer.is_global_zero else ()
    return Rehearsed(training.rehearse(trainer, fit_again), row_digests=digests)


def _read_features(trainer: pl.Trainer, training: UnitTraining, task: FeatureTask, script: Script) -> ReadAll:
    _leave_out_what_is_said_once(trainer)
    training.read_features(trainer, task, fit_again, lambda kind, rows: script.send(Read(kind, rows)))
    return ReadAll()


def _train(trainer: pl.Trainer, training: UnitTraining, task: UnitTask, script: Script) -> Trained:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, RecordingLogger)]
    for logger in loggers:
        logger.axis = lambda: logged_step(trainer)
    _leave_out_what_is_said_once(trainer)
    _give_files_a_place(trainer, task.unit)
    name_unit_in_logs(task.unit)
    training.note_file, training.advance, script.scratch = script.note_file, script.advance, task.scratch
    found = digest_memory(trainer)
    result = training.train(trainer, task, fit_again)
    calls = tuple(call for logger in loggers for call in logger.take())
    kept = tuple(changed(found, digest_memory(trainer)))
    return Trained(result.tensors, result.record, result.score, calls, logged_step(trainer), kept)


def _leave_out_what_is_said_once(trainer: pl.Trainer) -> None:
    """Leave out steps that the rehearsal has done for all units: sanity check, model summary, hyperparameters."""
    trainer.num_sanity_val_steps = 0
    trainer.enable_autolog_hparams = False
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [pl.Callback() if isinstance(callback, ModelSummary) else callback for callback in callbacks]


def _give_files_a_place(trainer: pl.Trainer, unit: UnitId) -> None:
    """Prevent two units from choosing the same file name: each starts as if no other had written files."""
    place = f"unit-{str(unit).replace('/', '-')}"
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            callback.dirpath = os.path.join(callback.dirpath, place)
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if profiler.filename is not None:
        profiler.filename = f"{profiler.filename}-{place}"


def _installed(modules: set[str]) -> list[str]:
    """Return which modules are of installed packages, in the order of their import."""
    places = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in list(sys.modules) if name in modules}
    return [name for name, file in files.items() if file.startswith(places)]


def _die_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_BETWEEN_LOOKS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
