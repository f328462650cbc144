"""An MLflow model that is a reference to a store: its artifact has the store's address and no weights.

So nothing has to be erased in MLflow when a person is forgotten: a loaded model looks at the store before each answer,
and never answers from what a request has revoked. MLflow is imported when it is used (extra `mlflow`).

Source: https://mlflow.org/docs/latest/ml/model/#python-function-flavor
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightning_s3t.core.documents import STRICT, read_json
from lightning_s3t.core.imports import import_object
from lightning_s3t.errors import ConfigurationError, DataError, S3TError
from lightning_s3t.serving.aggregation import Aggregate
from lightning_s3t.serving.predictor import EnsemblePredictor
from lightning_s3t.serving.replica import Replica
from lightning_s3t.store import Store
from lightning_s3t.tuning.nested import replace_leaves

_FILE = "reference.json"


@dataclass(frozen=True)
class StoreReference:
    """A store to answer from, and how.

    Attributes:
        store: The store's folder.
        model: The import path of a class or function that returns the module, with its pretrained weights.
        decode: The import path of a function from MLflow's input to the module's input; None for tensors of it.
        encode: The import path of a function from the module's output to MLflow's output; None for arrays.
        aggregate: How the shards' outputs are combined.
        max_staleness: For how many seconds after a look at the ledger the model may answer.
        format: The format of the file.
    """

    __pydantic_config__ = STRICT

    store: str
    model: str
    decode: str | None = None
    encode: str | None = None
    aggregate: Aggregate = "mean_logits"
    max_staleness: float = 0.0
    format: Literal[1] = 1

    def open(self) -> StoreModel:
        """Open the store.

        Raises:
            ConfigurationError: A function does not exist.
            StoreError: The store is missing or damaged.
        """
        decode, encode = self.decode, self.encode
        replica = Replica.from_store(self.store, _import(self.model)(), self.max_staleness, aggregate=self.aggregate)
        return StoreModel(
            replica,
            _import(decode) if decode is not None else _tensors,
            _import(encode) if encode is not None else _arrays,
        )


class StoreModel:
    """What MLflow calls: answers from the store as it is now.

    Args:
        replica: The replica.
        decode: From MLflow's input to the module's.
        encode: From the module's output to MLflow's.
    """

    def __init__(self, replica: Replica, decode: Callable[[Any], Any], encode: Callable[[Any], Any]) -> None:
        self.replica = replica
        self._decode = decode
        self._encode = encode

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer; nothing of the answer comes from what a request has revoked.

        Args:
            data: A DataFrame of numbers, an array, a list; or a dict of them, for arguments by name.
            params: Without effect: the reference decides how the store answers.

        Raises:
            DataError: Without `decode`: the data has other values than numbers.
            NoSurvivorError: Nothing is left that may answer.
            StoreError: The store cannot be reached.
        """
        inputs = self._decode(data)

        def compute(served: EnsemblePredictor) -> Any:
            with torch.inference_mode():
                return self._encode(served(**inputs) if isinstance(inputs, dict) else served(inputs))

        return self.replica.answer(compute)


def save_model(path: str | Path, store: str | Path, model: str, **arguments: Any) -> None:
    """Save a reference to a store as an MLflow model, in a folder.

    Args:
        path: The folder of the MLflow model.
        store: The store's folder: it has to be there, under the same path, where the model is loaded.
        model: The import path of a class or function that returns the module, with its pretrained weights. It has to
            be importable where the model is loaded (MLflow's `code_paths` can bring a file along).
        arguments: Those of `StoreReference`; all others are for `mlflow.pyfunc.save_model`.

    Raises:
        ConfigurationError: MLflow is not installed, a function does not exist, or an example would be copied.
        StoreError: The store is missing or damaged.
    """
    mlflow = _mlflow()
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(path=str(path), **_prepare(Path(folder), store, model, arguments))


def log_model(name: str, store: str | Path, model: str, **arguments: Any) -> Any:
    """Log a reference to a store as an MLflow model.

    Args:
        name: The model's name in MLflow.
        store: See `save_model`.
        model: See `save_model`.
        arguments: Those of `StoreReference`; all others are for `mlflow.pyfunc.log_model`, such as
            `registered_model_name`.

    Raises:
        ConfigurationError: See `save_model`.
        StoreError: See `save_model`.

    Returns:
        MLflow's `ModelInfo`; `mlflow.pyfunc.load_model(info.model_uri)` loads the model.
    """
    mlflow = _mlflow()
    with tempfile.TemporaryDirectory() as folder:
        return mlflow.pyfunc.log_model(name=name, **_prepare(Path(folder), store, model, arguments))


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> StoreModel:
    """Load a reference: MLflow calls it by this name.

    Args:
        path: The file of the reference, or its folder.
        model_config: Changes to the reference, such as another path of the store on this machine.
    """
    file = Path(path) / _FILE if Path(path).is_dir() else Path(path)
    try:
        reference = read_json(StoreReference, file.read_text())
        return read_json(StoreReference, json.dumps({**asdict(reference), **(model_config or {})})).open()
    except (OSError, ValueError) as error:
        if isinstance(error, S3TError):
            raise
        raise ConfigurationError(f"The reference to a store in {file} cannot be used: {error}.") from error


def _prepare(folder: Path, store: str | Path, model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Write the reference, and return the arguments for MLflow."""
    if arguments.get("input_example") is not None:
        raise ConfigurationError(
            "Expected no `input_example`: MLflow would keep a copy of these rows, which no request erases. Describe "
            "the inputs with `signature`."
        )
    own = {name: arguments.pop(name) for name in list(arguments) if name in StoreReference.__annotations__}
    reference = StoreReference(str(Path(store).resolve()), model, **own)
    for function in (reference.model, reference.decode, reference.encode):
        if function is not None:
            _import(function)
    Store.open(store).close()
    file = folder / _FILE
    file.write_text(json.dumps(asdict(reference), indent=2, sort_keys=True) + "\n")
    if not {"pip_requirements", "conda_env"} & arguments.keys():
        arguments["pip_requirements"] = ["lightning-s3t[mlflow]"]
    return {"loader_module": __name__, "data_path": str(file), **arguments}


def _import(path: str) -> Callable[..., Any]:
    found: Callable[..., Any] = import_object(path, "a function, as my_app:make_model")
    return found


def _mlflow() -> Any:
    try:
        import mlflow.pyfunc
    except ModuleNotFoundError as error:
        raise ConfigurationError('MLflow is not installed: pip install "lightning-s3t[mlflow]".') from error
    return mlflow


def _tensors(data: Any) -> Any:
    """Return tensors of arrays, tables and lists; fractions in the default precision."""
    if isinstance(data, dict):
        return {name: _tensors(value) for name, value in data.items()}
    if not isinstance(data, torch.Tensor):
        array = np.asarray(data)
        if array.dtype.kind not in "biufc":
            raise DataError(
                f"The model's input has values of type {array.dtype} ({type(data).__name__}). Expected numbers of one "
                "kind in all columns; for anything else, give the import path of a function as `decode`."
            )
        data = torch.tensor(array)
    found: torch.Tensor = data
    return found.to(torch.get_default_dtype()) if found.is_floating_point() else found


def _arrays(output: Any) -> Any:
    return replace_leaves(output, lambda _, leaf: leaf.numpy(force=True) if isinstance(leaf, torch.Tensor) else leaf)
