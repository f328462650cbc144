"""The public names: all there, and none dearer to import than it has to be."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["lightning_s3t", "lightning_s3t.plan"])
def test_every_name_of_the_stub_is_there(package: str) -> None:
    module = import_module(package)
    tree = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text())
    imported = {name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    [listed] = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert set(listed) == imported == set(module.__all__)
    for name in imported:
        assert getattr(module, name) is not None


@pytest.mark.parametrize(
    ("statement", "unneeded"),
    [
        ("import lightning_s3t", "torch"),
        ("import lightning_s3t", "lightning_s3t.metrics"),
        ("from lightning_s3t.plan import Partition, UnitId, survivors, units_of", "numpy"),
        ("from lightning_s3t.plan import compare", "torch"),
    ],
)
def test_what_a_name_does_not_need_is_not_imported(statement: str, unneeded: str) -> None:
    code = f"{statement}; import sys; sys.exit({unneeded!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
