"""MLflow models by reference: no weights in the artifact, and no answer from what a request has revoked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_s3t.errors import ConfigurationError, DataError, NoSurvivorError, StoreError
from lightning_s3t.serving import EnsemblePredictor
from lightning_s3t.serving.mlflow_flavor import StoreModel, StoreReference, _load_pyfunc, _prepare, _tensors
from lightning_s3t.store import Store
from tests.people import Classifier

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).numpy()
MODEL = "tests.people:Classifier"
PEOPLE = [f"user-{number}" for number in range(40)]


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


def served(store: Path) -> np.ndarray[Any, Any]:
    with EnsemblePredictor.from_store(store, Classifier()) as predictor, torch.no_grad():
        found: np.ndarray[Any, Any] = predictor(torch.from_numpy(X)).numpy()
        return found


@pytest.fixture
def loaded(store: Path, tmp_path: Path) -> Iterator[StoreModel]:
    given = _prepare(tmp_path, store, MODEL, {})
    model = _load_pyfunc(given["data_path"])
    yield model
    model.replica.close()


def labels(row: torch.Tensor) -> list[int]:
    """What an application makes of an answer."""
    return [int(label) for label in row.argmax(-1)]


@pytest.mark.parametrize("data", [[["a", "b"]], np.array([[1.0, None]], dtype=object), {"x": ["a"]}])
def test_what_is_not_a_number_is_refused_with_a_way_out(data: Any) -> None:
    with pytest.raises(DataError, match=r"has values of type .*Expected numbers.*as `decode`"):
        _tensors(data)


def test_what_is_forgotten_meanwhile_is_gone_from_the_next_answer(store: Path, loaded: StoreModel) -> None:
    before = loaded.predict(X)
    assert np.array_equal(before, served(store))
    with Store.open(store) as elsewhere:
        elsewhere.forget(["user-1"])
        assert np.array_equal(loaded.predict(X.astype(np.float64).tolist()), served(store))
        assert not np.array_equal(loaded.predict(X), before)
        elsewhere.forget(PEOPLE)
    with pytest.raises(NoSurvivorError):
        loaded.predict(X)


def test_the_artifact_names_the_store_and_holds_nothing_else(store: Path, tmp_path: Path) -> None:
    given = _prepare(tmp_path, store, MODEL, {"encode": f"{__name__}:labels", "signature": "theirs"})
    assert json.loads(Path(given["data_path"]).read_text()) == asdict(
        StoreReference(str(store), MODEL, encode=f"{__name__}:labels")
    )
    assert given["signature"] == "theirs"
    moved = Path(shutil.move(store, tmp_path / "moved"))
    with pytest.raises(StoreError):
        _load_pyfunc(given["data_path"])
    model = _load_pyfunc(given["data_path"], {"store": str(moved)})
    assert model.predict(X) == [int(label) for label in served(moved).argmax(-1)]
    model.replica.close()
    with pytest.raises(ConfigurationError, match="weights"):
        _load_pyfunc(given["data_path"], {"weights": "here"})


def test_what_would_be_copied_or_cannot_be_found_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="copy of these rows"):
        _prepare(tmp_path, store, MODEL, {"input_example": X})
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        _prepare(tmp_path, store, "nowhere:make", {})
    with pytest.raises(StoreError):
        _prepare(tmp_path, tmp_path / "none", MODEL, {})


@pytest.mark.nightly
def test_mlflow_loads_it_and_keeps_no_weights(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow-skinny pandas")
    pandas = pytest.importorskip("pandas")
    from lightning_s3t.serving.mlflow_flavor import log_model, save_model

    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "saved", store, MODEL)
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000
    assert not [path for path in files if path.suffix in (".pkl", ".safetensors", ".pt", ".ckpt")]
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    before = served(store)
    assert np.allclose(model.predict(pandas.DataFrame(X)), before, atol=1e-6)
    with Store.open(store) as elsewhere:
        elsewhere.forget(["user-1"])
    assert np.array_equal(model.predict(X), served(store))
    assert not np.allclose(before, served(store))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    with mlflow.start_run():
        info = log_model("classifier", store, MODEL)
    assert np.array_equal(mlflow.pyfunc.load_model(info.model_uri).predict(X), served(store))
