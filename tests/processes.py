"""Scripts and commands in processes of their own, which need not import Lightning and PEFT anew each time."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

_PRELOADED = ["lightning.pytorch.cli", "lightning_s3t.cli.lightning", "lightning_s3t.auditing", "tests.processes"]


def run(folder: Path, *command: str) -> str:
    """Run a script ("app.py", ...) or a module ("-m", "lightning_s3t", ...) as `python` does, in a folder.

    The process is forked from a server that has imported the large packages (seconds each time), and nothing else.

    Args:
        folder: Its working folder.
        command: What would stand behind `python`.

    Returns:
        What it printed, without what went to stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as outputs:
        out, err = Path(outputs, "out"), Path(outputs, "err")
        process = context.Process(target=_as_main, args=(folder, command, out, err))
        process.start()
        process.join(300)
        assert process.exitcode == 0, f"{command} in {folder}: {process.exitcode}\n{out.read_text()}\n{err.read_text()}"
        return out.read_text()


def _as_main(folder: Path, command: tuple[str, ...], out: Path, err: Path) -> None:
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder)
    if command[0] == "-m":
        sys.path.insert(0, str(folder))
        sys.argv = list(command[1:])
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str((folder / command[0]).parent))
        sys.argv = list(command)
        runpy.run_path(str(folder / command[0]), run_name="__main__")
