"""Limits of the control server: the size and rate of requests."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from lightning_s3t.core.clock import own_clock
from lightning_s3t.service.bodies import error_response

_CALLERS = 10_000  # kept in memory, at most
_CLOSE = {"Connection": "close"}  # the rest of the body is not read


class RateLimit:
    """A bucket of calls for each caller, which fills again with time.

    Args:
        per_minute: Number of calls per minute for each caller, which may all come at once.
        clock: In seconds.

    Example:
        >>> limit = RateLimit(2, clock=lambda: 0.0)
        >>> [limit.wait_for("a") for _ in range(3)]
        [0.0, 0.0, 30.0]
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = own_clock) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_for(self, caller: str) -> float:
        """Count a call; return 0, or after how many seconds the caller may come again.

        Args:
            caller: The caller.
        """
        now, rate = self._clock(), self._most / 60
        with self._lock:
            left, since = self._left.pop(caller, (self._most, now))
            left = min(self._most, left + (now - since) * rate)
            allowed = left >= 1
            self._left[caller] = (left - 1 if allowed else left, now)
            if len(self._left) > _CALLERS:
                self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate


class SizeLimit:
    """ASGI middleware: refuses a body that is too large, before more of it is read.

    Args:
        app: The application.
        max_bytes: The size of a body, at most.
        json_path: The path whose body must be JSON; None for none. (LitServe answers 500 to other bodies.)
    """

    def __init__(self, app: Any, max_bytes: int, json_path: str | None = None) -> None:
        self._app = app
        self._max = max_bytes
        self._json_path = json_path

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
        messages: list[Any] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max:
                refusal = error_response(413, "too_large", f"The body has more than {self._max} bytes.", _CLOSE)
                await refusal(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break

        if scope["path"] == self._json_path and scope["method"] == "POST" and not _is_json(messages):
            await error_response(422, "invalid", "The body is not JSON.", _CLOSE)(scope, receive, send)
            return

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)


def _is_json(messages: list[Any]) -> bool:
    try:
        json.loads(b"".join(message.get("body", b"") for message in messages))
    except (ValueError, RecursionError):
        return False
    return True
