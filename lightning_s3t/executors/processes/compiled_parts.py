"""What `torch.compile` has made, on its way to another process: it is compiled there again, with the same arguments.

Compiled code belongs to a process. inductor keeps what it has compiled in a folder that all processes share, so it is
only the first that takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.eval_frame import OptimizeContext

from lightning_s3t.tuning.compiled import compile_arguments

COMPILABLE = (nn.Module, FunctionType, OptimizeContext)
"""What may have been compiled, or be the context that compiled calls run in."""


def reduce_compiled(obj: Any) -> tuple[Any, ...] | None:
    """Returns how pickle makes something compiled anew, as `__reduce__` does; None for what is not.

    Args:
        obj: A module, a function, or the context that compiled calls run in.
    """
    if isinstance(obj, (OptimizedModule, OptimizeContext, FunctionType)):
        arguments = compile_arguments(obj)
        if arguments is None:
            return None
        if isinstance(obj, OptimizeContext):
            return _context, (arguments,)
        if isinstance(obj, FunctionType):
            return _compile, (obj._torchdynamo_orig_callable, arguments)  # type: ignore[attr-defined]
        hooks = {name: value for name, value in vars(obj).items() if "_hooks" in name and value}
        return _compile, (obj._orig_mod, arguments), hooks, None, None, _set_attributes
    if isinstance(obj, nn.Module) and obj._compiled_call_impl is not None:
        arguments = compile_arguments(obj._compiled_call_impl)
        if arguments is not None:
            make, given, state = cast(tuple[Any, ...], obj.__reduce_ex__(5))[:3]
            return make, given, (state, arguments), None, None, _set_state_and_compile
    return None


def _compile(target: Any, arguments: Mapping[str, Any]) -> Any:
    return torch._dynamo.optimize(**arguments)(target)


def _context(arguments: Mapping[str, Any]) -> Any:
    return torch._dynamo.optimize(**arguments)


def _set_attributes(obj: object, attributes: Mapping[str, Any]) -> None:
    vars(obj).update(attributes)


def _set_state_and_compile(module: nn.Module, state_and_arguments: tuple[Any, Mapping[str, Any]]) -> None:
    state, arguments = state_and_arguments
    module.__setstate__(state)
    module._compiled_call_impl = _compile(module._call_impl, arguments)
