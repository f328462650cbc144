"""The process that forks fits: there while one runs, and gone a while after the last."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from lightning_s3t.executors.processes import server
from lightning_s3t.executors.processes.messages import receive, send
from lightning_s3t.executors.processes.packing import pack


def test_it_stays_while_a_fit_runs_and_ends_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER", 0.1)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        server.run_and_leave(server.serve, theirs)
    theirs.close()
    package = pack(None, {})
    fit, its_end = socket.socketpair()
    begin = server.BeginFit(package.header, False, True, dict(os.environ), str(Path.cwd()), sys.path, sys.argv)
    send(ours, begin, [its_end.fileno(), package.file.fileno(), 1, 2])
    its_end.close()
    package.close()
    assert isinstance(receive(fit)[0], server.Loaded)
    time.sleep(0.5)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    fit.close()
    deadline = time.monotonic() + 30
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ours.close()
