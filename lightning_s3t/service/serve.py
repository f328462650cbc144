"""Both servers, each in its own processes, until they are stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from lightning_s3t.core.interrupts import interrupts_blocked
from lightning_s3t.service.control import make_control_app
from lightning_s3t.service.settings import ServiceSettings, import_named
from lightning_s3t.service.tokens import Tokens
from lightning_s3t.store import Store

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


def serve(store: Path, settings: ServiceSettings, tokens: Path | None) -> None:
    """Run both servers, or only the control server if the settings do not name a model; return when stopped.

    Args:
        store: The store's folder.
        settings: Of the service.
        tokens: A file with tokens; None for the environment.

    Raises:
        ConfigurationError: There is no "ask" token; or an import path in the settings is invalid.
        StoreError: The store is missing or damaged.
    """
    stopping, own = threading.Event(), os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # LitServe forks its servers, which have shut down by then
            raise SystemExit(0)
        stopping.set()
        raise KeyboardInterrupt

    Tokens.read(tokens)
    Store.open(store).close()
    if settings.model is None:
        run_control(store, settings, tokens)
        return
    from lightning_s3t.service.predict import make_predict_server

    tokenizer = settings.chat.tokenizer if settings.chat is not None else None
    for path in (settings.model, settings.decode, settings.encode, tokenizer):
        if path is not None:
            import_named(path)
    server = make_predict_server(store, settings)
    launch_all, launch = server.launch_inference_worker, server.launch_single_inference_worker

    def launch_first(*arguments: Any) -> Any:
        with _deaf_to_interrupts():
            return launch_all(*arguments)

    def launch_again(*arguments: Any) -> Any:
        if stopping.is_set():  # or LitServe would start workers again that Ctrl-C has ended
            threading.Event().wait()  # its watching thread ends with the process
        with _deaf_to_interrupts():
            return launch(*arguments)

    def is_news(entry: logging.LogRecord) -> bool:
        return not (stopping.is_set() and entry.msg == "Monitoring worker crashed")

    server.launch_inference_worker, server.launch_single_inference_worker = launch_first, launch_again
    # its watching thread may query the process with shared state once more after that process has ended
    logging.getLogger("litserve.server").addFilter(is_news)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with ControlProcess(store, settings, tokens, stopping):
            server.run(
                host=settings.host,
                port=settings.port,
                num_api_servers=1,
                log_level="warning",
                generate_client_file=False,
                access_log=False,  # no contents of requests
            )
    finally:
        stopping.set()
        for child in multiprocessing.active_children():
            child.kill()


def run_control(store: Path, settings: ServiceSettings, tokens: Path | None) -> None:
    """Serve the control server.

    Args:
        store: The store's folder.
        settings: Of the service.
        tokens: A file with tokens; None for the environment.
    """
    folder = os.environ.get(MULTIPROCESS) if settings.model is not None else None
    app = make_control_app(store, Tokens.read(tokens), settings.control, folder)
    uvicorn.run(
        app,
        host=settings.control.host,
        port=settings.control.port,
        log_level="warning",
        access_log=False,
        server_header=False,
    )


class ControlProcess:
    """The control server in a separate process, which is restarted if it dies.

    Args:
        store: The store's folder.
        settings: Of the service.
        tokens: A file with tokens; None for the environment.
        stopping: Set when it must not be restarted.
    """

    def __init__(self, store: Path, settings: ServiceSettings, tokens: Path | None, stopping: threading.Event) -> None:
        self._arguments = (store, settings, tokens)
        self._stopping = stopping
        self._process = self._start()
        self._watcher = threading.Thread(target=self._watch, name="s3t-control", daemon=True)

    def __enter__(self) -> ControlProcess:
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._watcher.join()
        self._process.terminate()
        self._process.join(10)

    def _start(self) -> BaseProcess:
        # not forked: the process has threads, and may have a device
        process = multiprocessing.get_context("spawn").Process(target=run_control, args=self._arguments, daemon=True)
        with _deaf_to_interrupts():
            process.start()
        return process

    def _watch(self) -> None:
        while not self._stopping.wait(1.0):
            if not self._process.is_alive():
                self._process = self._start()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    resource_tracker.ensure_running()  # starting it would end the block
    with interrupts_blocked():
        yield
