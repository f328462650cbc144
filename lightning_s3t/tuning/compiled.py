"""Whether torch compiles a module."""

from __future__ import annotations

from torch import nn
from torch._dynamo import OptimizedModule


def has_compiled_parts(module: nn.Module) -> bool:
    """Return whether torch compiles the module, or a part of it.

    Args:
        module: The module.

    Example:
        >>> has_compiled_parts(nn.Linear(1, 1))
        False
    """
    return any(isinstance(part, OptimizedModule) or part._compiled_call_impl is not None for part in module.modules())
