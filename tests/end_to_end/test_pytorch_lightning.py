"""Apps and libraries that import `pytorch_lightning`, trained with the same callback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# a library whose classes units' processes import by their names
LIBRARY = """
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import seed_everything
from pytorch_lightning.callbacks.early_stopping import EarlyStopping
from torch import nn

class Stopping(EarlyStopping):
    pass

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        seed_everything(0, verbose=False)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
"""

APP = """
import sys
import lightning_s3t
lightning_s3t.alias_pytorch_lightning()
lightning_s3t.alias_pytorch_lightning()  # a second time changes nothing
import pytorch_lightning as pl
import torch
from library import Model, Stopping
from torch.utils.data import DataLoader, TensorDataset
import lightning.pytorch

rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
loader = DataLoader(TensorDataset(rows, (rows.sum(1) > 0).long()), 8)
s3t = lightning_s3t.S3T("store", 2, 2, 2, subjects="index", adapter={"r": 2})
quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[s3t, Stopping("loss")], **quiet)
trainer.fit(Model(), loader)
served = lightning_s3t.EnsembleModule.from_store("store", Model())
assert "test_loss" in pl.Trainer(accelerator="cpu", **quiet).test(served, loader, verbose=False)[0]
assert served.forget([7]).revoked
trainer.fit(Model(), loader)
assert len(served.store.alive()) == 8
assert pl is lightning.pytorch and lightning.pytorch.__spec__.name == "lightning.pytorch"
assert not [m for m in sys.modules.values() if getattr(m, "__name__", "").startswith("pytorch_lightning")]
print("done")
"""

LATE = """
import sys, types
sys.modules["pytorch_lightning"] = types.ModuleType("pytorch_lightning")
from lightning_s3t import alias_pytorch_lightning
from lightning_s3t.errors import ConfigurationError
try:
    alias_pytorch_lightning()
except ConfigurationError as error:
    print(error, len([finder for finder in sys.meta_path if "Alias" in type(finder).__name__]))
"""


def run(folder: Path, script: str) -> str:
    (folder / "library.py").write_text(LIBRARY)
    (folder / "app.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.nightly
def test_a_library_that_imports_pytorch_lightning_is_trained_and_forgets(tmp_path: Path) -> None:
    assert run(tmp_path, APP).endswith("done\n")


def test_an_alias_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    assert "pytorch_lightning is imported already" in (printed := run(tmp_path, LATE))
    assert printed.endswith(" 0\n")
