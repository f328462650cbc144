"""One Lightning under both of its names: `pytorch_lightning` as another name of `lightning.pytorch`.

The two packages contain the same code, but different classes: a trainer of one does not accept callbacks of the other.
To support both, S3T would need a second version of each class that it checks for (trainer, strategies, loops,
callbacks, loggers), and of everything that is sent to a unit's process. So libraries that import `pytorch_lightning`
get `lightning.pytorch` instead.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

from lightning_s3t.errors import ConfigurationError

_ACTUAL = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def alias_pytorch_lightning() -> None:
    """Make `import pytorch_lightning` return `lightning.pytorch`, for libraries written for the former.

    Call it before anything imports `pytorch_lightning`. Modules, trainers and callbacks of such libraries are then
    those of `lightning.pytorch`, and S3T trains them like any others. (`lightning_fabric` becomes `lightning.fabric`.)

    Raises:
        ConfigurationError: `pytorch_lightning` has been imported already. Nothing was changed.
    """
    if is_aliased():
        return
    early = [name for name in _ACTUAL if name in sys.modules]
    if early:
        raise ConfigurationError(
            f"The package {early[0]} is imported already. Call lightning_s3t.alias_pytorch_lightning() in the first "
            "lines of the script, before anything imports it."
        )
    sys.meta_path.insert(0, _AliasFinder())


def is_aliased() -> bool:
    """Return whether `pytorch_lightning` is another name of `lightning.pytorch` in this process."""
    return any(isinstance(finder, _AliasFinder) for finder in sys.meta_path)


class _AliasFinder(MetaPathFinder, Loader):
    """Finds the modules of one package under the name of another, without running them twice."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        return spec_from_loader(fullname, self) if package in _ACTUAL else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package, dot, rest = spec.name.partition(".")
        module = importlib.import_module(f"{_ACTUAL[package]}{dot}{rest}")
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # it was executed under its own name, which the import system has since removed
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name)
