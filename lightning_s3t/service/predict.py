"""The prediction server: a replica in each worker of a LitServe server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from litserve.utils import WorkerSetupStatus
from torch import Tensor
from torch.utils.data import default_collate

from lightning_s3t.core.clock import own_clock
from lightning_s3t.errors import NoSurvivorError, S3TError, StoreError
from lightning_s3t.service.chat import CHAT_PATH, ChatAPI, add_models
from lightning_s3t.service.counting import Counting
from lightning_s3t.service.limits import SizeLimit
from lightning_s3t.service.replicas import TIMED_OUT, Refused, open_replica, refusal_of
from lightning_s3t.service.settings import ServiceSettings, import_named
from lightning_s3t.serving import EnsemblePredictor, Replica
from lightning_s3t.store import Store
from lightning_s3t.tuning.nested import replace_tensors

PATH = "/predict"
_log = logging.getLogger("lightning_s3t.service")
_WATCH = 0.5  # seconds between two looks at whether the workers live


class Answering:
    """Answers batches with a replica; a request that cannot be answered does not affect the others in its batch.

    Args:
        replica: The replica.
        decode: From the JSON of one request to the input for one row.
        encode: From the output for one row to JSON.
    """

    def __init__(
        self, replica: Replica, decode: Callable[[Any], Any] | None = None, encode: Callable[[Any], Any] | None = None
    ) -> None:
        self._replica = replica
        self._decode = decode if decode is not None else _inputs
        self._encode = encode if encode is not None else _plain

    def decode(self, body: Any) -> Any:
        """Return the input for one row, or the refusal of the request.

        Args:
            body: The JSON of a request.
        """
        try:
            return self._decode(body)
        except Exception as error:  # whatever the application's function makes of a stranger's text
            _log.info("A request could not be decoded: %s", type(error).__name__)
            return Refused(422, "invalid", "The model cannot take this body.")

    def answer(self, rows: Sequence[Any]) -> list[JSONResponse]:
        """Return the answers to several requests.

        Args:
            rows: The result of `decode` for each.
        """
        found: list[Any] = list(rows)
        good = [number for number, row in enumerate(rows) if not isinstance(row, Refused)]
        for number, answer in zip(good, self._answer([rows[number] for number in good]), strict=True):
            found[number] = answer
        return [one.response() if isinstance(one, Refused) else one for one in found]

    def _answer(self, rows: list[Any]) -> list[Any]:
        if not rows:
            return []
        try:
            as_of, answers = self._replica.answer_as_of(lambda served: self._compute(served, rows))
        except (NoSurvivorError, StoreError) as error:
            return [refusal_of(error)] * len(rows)
        except Exception as error:  # of the application's own code
            if len(rows) > 1:
                return [answer for row in rows for answer in self._answer([row])]
            _log.error("A request could not be answered: %s", type(error).__name__)
            return [Refused(422, "invalid", "The model cannot answer this.")]
        headers = {"X-S3T-Request": str(as_of)}
        return [_in_json(answer, headers) for answer in answers]

    def _compute(self, served: EnsemblePredictor, rows: list[Any]) -> list[Any]:
        """Compute and encode: all that is in an answer was there when the replica checks it."""
        device = next(iter(served.module.parameters())).device
        with torch.inference_mode():
            batch = replace_tensors(default_collate(rows), lambda path, tensor: tensor.to(device))
            output = served(batch)
            return [self._encode(row) for row in _rows(output, len(rows))]


class PredictAPI(litserve.LitAPI):
    """The API of each worker of the prediction server: made in another process, from the names of module and store.

    Args:
        store: The store's folder.
        settings: Of the service.
    """

    def __init__(self, store: Path, settings: ServiceSettings) -> None:
        super().__init__(settings.max_batch_size, settings.batch_timeout, api_path=PATH)
        self._store = store
        self._settings = settings

    def setup(self, device: str) -> None:
        """Called once in each worker: load the store.

        Args:
            device: The device.
        """
        given = self._settings
        decode = import_named(given.decode) if given.decode is not None else None
        encode = import_named(given.encode) if given.encode is not None else None
        self._answering = Answering(open_replica(self._store, given, device), decode, encode)

    def decode_request(self, request: Any, **kwargs: Any) -> Any:
        """Called for each request.

        Args:
            request: Its JSON.
            kwargs: Without effect.
        """
        return self._answering.decode(request)

    def batch(self, inputs: Any) -> Any:
        """Called for each batch: returns the rows unchanged.

        Args:
            inputs: The rows.
        """
        return list(inputs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """Called for each batch.

        Args:
            x: The rows, or one row without batching.
            kwargs: Without effect.
        """
        return self._answering.answer(x) if self.max_batch_size > 1 else self._answering.answer([x])[0]

    def unbatch(self, output: Any) -> Any:
        """Called for each batch.

        Args:
            output: The answers.
        """
        return output


# LitServe uses this annotation as the type of the body
PredictAPI.decode_request.__annotations__.clear()


def make_predict_server(store: Path, settings: ServiceSettings) -> litserve.LitServer:
    """Create the prediction server.

    Args:
        store: The store's folder.
        settings: Of the service.
    """
    api = PredictAPI(store, settings) if settings.chat is None else ChatAPI(store, settings, settings.chat)
    server = litserve.LitServer(
        api,
        accelerator=settings.accelerator,
        workers_per_device=settings.workers,
        timeout=settings.timeout,
        restart_workers=True,
        middlewares=[
            (SizeLimit, {"max_bytes": settings.max_bytes, "json_path": PATH}),
            (Counting, {"paths": (PATH, CHAT_PATH, "/healthz", "/readyz"), "timeout": settings.timeout}),
        ],
    )
    server.monitor_internal = _WATCH
    server.app.add_exception_handler(HTTPException, _of_litserve)
    if settings.chat is not None:
        add_models(server.app, settings.chat)
    last_look = own_clock() - settings.max_staleness

    @server.app.get("/healthz", summary="Whether the process lives")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @server.app.get("/readyz", summary="Whether requests can be answered")
    def readyz() -> JSONResponse:
        nonlocal last_look
        if WorkerSetupStatus.READY not in server.workers_setup_status.values():
            return Refused(503, "starting", "No worker is ready yet.").response()
        began = own_clock()
        try:
            Store.newest_event(store)
        except S3TError:
            if own_clock() >= last_look + settings.max_staleness:
                return Refused(503, "unreachable", "The ledger is out of reach.").response()
        else:
            last_look = began
        return JSONResponse({"status": "ready"})

    return server


async def _of_litserve(request: Request, error: Exception) -> Response:
    """Say that a request may be asked again if its worker has died: LitServe answers 500."""
    assert isinstance(error, HTTPException)
    return TIMED_OUT.response() if error.status_code in (500, 504) else await http_exception_handler(request, error)


def _in_json(answer: Any, headers: Mapping[str, str]) -> JSONResponse | Refused:
    try:
        return JSONResponse(answer, headers=headers)
    except (TypeError, ValueError) as error:  # NaN, which a stranger's NaN or 1e999 makes of a row, is not JSON
        _log.info("An answer has no JSON form: %s", type(error).__name__)
        return Refused(422, "invalid", "The model's answer to this has no JSON form.")


def _inputs(body: Any) -> Tensor:
    return torch.as_tensor(body["inputs"])


def _plain(row: Any) -> Any:
    if isinstance(row, Tensor):
        return row.tolist()
    if isinstance(row, Mapping):
        return {name: _plain(value) for name, value in row.items()}
    return [_plain(part) for part in row] if isinstance(row, (list, tuple)) else row


def _rows(output: Any, count: int) -> list[Any]:
    """Take an answer for a batch apart."""
    if isinstance(output, Mapping):
        parts = {name: _rows(value, count) for name, value in output.items() if value is not None}
        return [{name: values[number] for name, values in parts.items()} for number in range(count)]
    if isinstance(output, tuple):
        columns = [_rows(value, count) for value in output]
        return [list(row) for row in zip(*columns, strict=True)]
    if len(output) != count:
        raise ValueError(f"The model returned {len(output)} rows for {count}.")
    return list(output)
