"""The settings of a service: one YAML file. Tokens are not in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lightning_s3t.core.imports import import_object
from lightning_s3t.errors import ConfigurationError
from lightning_s3t.store.requests.leases import MAX_STALENESS

_Port = Annotated[int, Field(ge=1024, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FidesSettings(_Section):
    """The webhook for Fides.

    Attributes:
        identity: The kind of identity that has a person's id in the training data: external_id, email, phone_number,
            or a kind of your own.
    """

    identity: Annotated[str, Field(min_length=1, max_length=200)]


class OpenDSRSettings(_Section):
    """Requests by OpenDSR.

    Attributes:
        identity: The `identity_type` that has a person's id in the training data: controller_customer_id, email, ...
        controller: The id of the controller who asks.
        domain: The domain that the requests arrive at, for which the certificate is issued.
        certificate: The file with the certificate, and those between it and its authority (PEM).
        key: The file with its private key (RSA or EC, PEM).
        callbacks: The addresses that callbacks may go to; https, or http on this machine.
        outbox: A folder for callbacks that have not been delivered yet.
    """

    identity: Annotated[str, Field(min_length=1, max_length=200)]
    controller: Annotated[str, Field(min_length=1, max_length=200)]
    domain: Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:[0-9]+)?$")]
    certificate: Path
    key: Path
    callbacks: list[
        Annotated[str, Field(pattern=r"^(https://[^\s@]+|http://(127\.0\.0\.1|localhost)[:/][^\s@]+)$")]
    ] = []
    outbox: Path


class ControlSettings(_Section):
    """The control server.

    Attributes:
        host: The address that it listens on.
        port: Its port.
        requests_per_minute: Number of calls per minute for each role and address.
        max_bytes: The size of a request's body, at most.
        max_subjects: The largest number of subjects in a request.
        due_every: After how many seconds to look for scheduled requests that are due.
        answer_within: Number of days within which to answer a request, for the deadlines that the desk shows.
        signing_key: The file with the private key (Ed25519, PEM) that signs receipts; None to leave them unsigned.
        fides: The webhook for Fides; None without one.
        opendsr: Requests by OpenDSR; None without them.
    """

    host: str = "127.0.0.1"
    port: _Port = 8001
    requests_per_minute: Annotated[int, Field(ge=1)] = 120
    max_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    max_subjects: Annotated[int, Field(ge=1)] = 10_000
    due_every: Annotated[float, Field(gt=0)] = 10.0
    answer_within: Annotated[int, Field(ge=1, le=3650)] = 30
    signing_key: Path | None = None
    fides: FidesSettings | None = None
    opendsr: OpenDSRSettings | None = None


class ChatSettings(_Section):
    """Chat completions, in OpenAI's form.

    Attributes:
        tokenizer: The import path of a function that returns the model's transformers tokenizer, with a chat template.
        name: The model's name in requests and answers.
        max_tokens: The largest number of tokens in an answer, and their number if a request does not say.
    """

    tokenizer: str
    name: Annotated[str, Field(min_length=1, max_length=200)] = "s3t"
    max_tokens: Annotated[int, Field(ge=1)] = 512


class ServiceSettings(_Section):
    """The settings of a service.

    Attributes:
        model: The import path of a class or function that returns the module, with its pretrained weights:
            my_app:make_model. None for only the control server.
        decode: The import path of a function from the JSON of one request to the network's input for one row, without
            a batch dimension; None for `torch.as_tensor(body["inputs"])`.
        encode: The import path of a function from the module's output for one row to JSON; None for lists of numbers.
        chat: Answer chat completions, in place of `/predict`; the model is a transformers language model.
        aggregate: How the shards' outputs are combined.
        passes: Whether the shards run one after another.
        preload: Keep all units that may become survivors in memory.
        max_staleness: For how many seconds after a look at the ledger a worker may answer.
        renew_every: Seconds after which to load units that a fit has added.
        host: The address that the prediction server listens on: 127.0.0.1, 0.0.0.0 or ::.
        port: Its port.
        workers: Number of worker processes on each device.
        accelerator: Their accelerator.
        max_batch_size: The largest number of requests to answer at once.
        batch_timeout: For how many seconds a batch waits to be full.
        timeout: Seconds after which a request times out, and a stream that has paused.
        max_bytes: The size of a request's body, at most.
        control: The control server.

    Example:
        >>> ServiceSettings(model="my_app:make_model").control.port
        8001
    """

    model: str | None = None
    decode: str | None = None
    encode: str | None = None
    chat: ChatSettings | None = None
    aggregate: Literal["mean_logits", "mean_probabilities", "vote", "single"] = "mean_logits"
    passes: Literal["auto", "sequential", "batched"] = "auto"
    preload: bool = False
    max_staleness: Annotated[float, Field(ge=0, le=MAX_STALENESS)] = 0.0
    renew_every: Annotated[float, Field(gt=0)] | None = 10.0
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1"
    port: _Port = 8000
    workers: Annotated[int, Field(ge=1)] = 1
    accelerator: Literal["cpu", "cuda", "mps", "auto"] = "auto"
    max_batch_size: Annotated[int, Field(ge=1)] = 16
    batch_timeout: Annotated[float, Field(ge=0)] = 0.002
    timeout: Annotated[float, Field(gt=0)] = 30.0
    max_bytes: Annotated[int, Field(ge=1024)] = 10_485_760
    control: ControlSettings = ControlSettings()

    @model_validator(mode="after")
    def _check_chat(self) -> ServiceSettings:
        if self.chat is not None and (self.model is None or self.decode is not None or self.encode is not None):
            raise ValueError("chat needs `model`, and has neither `decode` nor `encode`")
        return self


def read_settings(path: Path) -> ServiceSettings:
    """Read the settings of a service.

    Args:
        path: A YAML file.

    Raises:
        ConfigurationError: It cannot be read, or has other settings than there are.
    """
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"The settings {path} cannot be read: {error}. Expected a YAML file.") from error
    try:
        return ServiceSettings.model_validate({} if found is None else found)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}, but got {one['input']!r:.60}"
            for one in error.errors()
        )
        raise ConfigurationError(f"The settings {path} cannot be used. {wrong}.") from error


def import_named(path: str) -> Callable[..., Any]:
    """Import a function by the import path in the settings.

    Args:
        path: Its import path.

    Raises:
        ConfigurationError: The function does not exist.

    Example:
        >>> import_named("math:sqrt")(9)
        3.0
    """
    found = import_object(path, "a function, as my_app:make_model")
    if not callable(found):
        raise ConfigurationError(f"{path} cannot be called. Expected a function, such as my_app:make_model.")
    function: Callable[..., Any] = found
    return function
