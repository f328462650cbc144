"""Replacing a network's modules, and restoring the originals.

A unit never trains the tensors of the user's network: copies and adapters replace them while it runs. So the pretrained
network stays intact, a layer group is deactivated by not replacing it, and weights tied to the head (a language model's
input embedding) do not change when the head is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from lightning_s3t.errors import LayersError


class ModuleSwap:
    """Replaces chosen submodules of a module with others, at every place where they are registered.

    Args:
        root: The module to work on.
        names: Dotted paths of the submodules that may be swapped.

    Raises:
        LayersError: A path is not a submodule of `root`, or is `root` itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> swap = ModuleSwap(net, ["0"])
        >>> swap.install({"0": nn.Identity()})
        >>> net[0]
        Identity()
        >>> swap.restore()
        >>> net[0]
        Linear(in_features=2, out_features=2, bias=True)
    """

    def __init__(self, root: nn.Module, names: Iterable[str]) -> None:
        self.originals: dict[str, nn.Module] = {}
        for name in names:
            if not name:
                raise LayersError("The root module cannot be swapped: layers and head must be submodules of it.")
            try:
                self.originals[name] = root.get_submodule(name)
            except AttributeError as error:
                raise LayersError(f"The module has no submodule {name!r}.") from error
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for parent in root.modules():
            for attribute, child in parent._modules.items():
                places.setdefault(id(child), []).append((parent, attribute))
        self._places = {name: places[id(module)] for name, module in self.originals.items()}
        self._installed: set[str] = set()

    def install(self, replacements: Mapping[str, nn.Module]) -> None:
        """Put these modules in place; all other names get their originals.

        Args:
            replacements: The modules, by the path of the module that each replaces.
        """
        for name in self._installed - replacements.keys():
            self._put(name, self.originals[name])
        for name, module in replacements.items():
            self._put(name, module)
        self._installed = set(replacements)

    def restore(self) -> None:
        """Restore all originals."""
        self.install({})

    def _put(self, name: str, module: nn.Module) -> None:
        for parent, attribute in self._places[name]:
            parent._modules[attribute] = module
