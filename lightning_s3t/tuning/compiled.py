"""Compiled modules: whether a module is compiled, and with which arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule
from torch._dynamo.convert_frame import ConvertFrame
from torch._dynamo.eval_frame import OptimizeContext

_PLAIN = (str, int, float, bool, type(None))


def has_compiled_parts(module: nn.Module) -> bool:
    """Return whether torch compiles the module, or a part of it.

    Args:
        module: The module.

    Example:
        >>> has_compiled_parts(nn.Linear(1, 1))
        False
    """
    return any(isinstance(part, OptimizedModule) or part._compiled_call_impl is not None for part in module.modules())


def compile_arguments(compiled: object) -> dict[str, Any] | None:
    """Return the arguments with which `torch._dynamo.optimize`, which `torch.compile` calls, compiles the same again.

    torch has no public API for them. Its own pickling of a compiled module leaves out `fullgraph` and `dynamic`, and
    the results of `Module.compile`.

    Args:
        compiled: A compiled module or function, or the context that its calls run in.

    Returns:
        The arguments; None if torch does not compile it.

    Example:
        >>> import torch
        >>> compile_arguments(torch.compile(nn.Linear(1, 1), backend="eager", fullgraph=True))["nopython"]
        True
        >>> compile_arguments(nn.Linear(1, 1)) is None
        True
    """
    context = _context_of(compiled)
    if context is None:
        return None
    backend = convert = _inner(context.callback)
    while _inner(backend) is not None:
        backend = _inner(backend)
    arguments = {
        "backend": backend,
        "nopython": not isinstance(convert, ConvertFrame),
        "dynamic": context._dynamic,
    }
    later = {  # that torch 2.6 has not
        "guard_filter_fn": getattr(getattr(convert, "_hooks", None), "guard_filter_fn", None),
        "recompile_limit": getattr(convert, "_recompile_limit", None),
        "isolate_recompiles": getattr(context, "_isolate_recompiles_id", -1) != -1,
        "dynamic_shapes": getattr(context, "_dynamic_shapes", None),
    }
    return {**arguments, **{name: value for name, value in later.items() if value}}


def describe_compiled(module: nn.Module) -> dict[str, Any]:
    """Return how torch compiles a module and its parts, JSON-ready, by path; compiled kernels round in their own way.

    Args:
        module: The module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(1, 1), torch.compile(nn.Linear(1, 1), backend="eager"))
        >>> describe_compiled(net)
        {'1': {'backend': 'eager', 'fullgraph': False, 'dynamic': None, 'options': {}}}
    """
    whole = getattr(module, "_compiler_ctx", None)  # Lightning's, of a module that was compiled as a whole
    parts: list[tuple[str, object]] = [("", whole["dynamo_ctx"])] if whole is not None else []
    for path, part in module.named_modules():
        parts += [(path, part), (path, vars(part).get("_compiled_call_impl"))]
    arguments = ((path, compile_arguments(part)) for path, part in parts)
    return {path: _describe(given) for path, given in arguments if given is not None}


def _describe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    backend = arguments["backend"]
    given = {**getattr(backend, "config", {}), **getattr(backend, "kwargs", {})}
    options = {**(given.pop("options", None) or {}), **given}
    return {
        "backend": getattr(backend, "compiler_name", getattr(backend, "__name__", type(backend).__name__)),
        "fullgraph": arguments["nopython"],
        "dynamic": arguments["dynamic"],
        # an object's own text may have its address in it
        "options": {
            name: value if isinstance(value, _PLAIN) else type(value).__name__ for name, value in options.items()
        },
    }


def _context_of(compiled: object) -> OptimizeContext | None:
    if isinstance(compiled, OptimizedModule):
        compiled = compiled.dynamo_ctx
    if isinstance(compiled, OptimizeContext):
        return compiled
    if "_torchdynamo_orig_callable" in getattr(compiled, "__dict__", {}):
        for cell in getattr(compiled, "__closure__", None) or ():
            if isinstance(cell.cell_contents, OptimizeContext):
                return cell.cell_contents
    return None


def _inner(callback: Any) -> Any:
    """Return the callback that one of torch's callbacks calls; None for the backend, which calls none."""
    for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable"):  # today's name, and that of torch 2.6
        if hasattr(callback, name):
            return getattr(callback, name)
    return None
