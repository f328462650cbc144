"""Middleware of the prediction server: counts calls, and ends calls that a dead worker left open.

Import it when PROMETHEUS_MULTIPROC_DIR is set: prometheus-client looks there once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import Counter, Histogram

from lightning_s3t.core.clock import own_clock
from lightning_s3t.service.replicas import TIMED_OUT

ANSWERS = Counter("s3t_answers", "Calls of the prediction server, by path and status.", ["path", "status"])
SECONDS = Histogram("s3t_answer_seconds", "How long calls of the prediction server took.", ["path"])


class Counting:
    """ASGI middleware: counts calls, and answers 503 where nothing has answered in time.

    Args:
        app: The application.
        paths: The paths that are counted by name; all others count as "other", so that callers cannot create new ones.
        timeout: In seconds, until an answer begins. (A stream may take longer, and watches its own pauses.)
    """

    def __init__(self, app: Any, paths: tuple[str, ...], timeout: float) -> None:
        self._app = app
        self._paths = paths
        self._timeout = timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a connection.

        Args:
            scope: The connection's scope.
            receive: Returns the client's messages.
            send: Sends to the client.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        began, status = own_clock(), 0

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        answering = asyncio.ensure_future(self._app(scope, receive, noting))
        try:
            await asyncio.wait({answering}, timeout=self._timeout)
            if status or answering.done():
                await answering
            else:
                status = 503
                await TIMED_OUT.response()(scope, receive, send)
        finally:
            answering.cancel()  # without effect if it has ended
            ANSWERS.labels(path, str(status or 500)).inc()
            SECONDS.labels(path).observe(own_clock() - began)
