"""torch's settings that hold for a whole process, and that bits may depend on."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

_CALLS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    # the number of threads determines how sums are split
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default_device": (torch.get_default_device, torch.set_default_device),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "detect_anomaly": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "flash_sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "mem_efficient_sdp": (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    "math_sdp": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn_sdp": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "mha_fastpath": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    "flush_denormal": (lambda: _flushes_denormals(), torch.set_flush_denormal),
}
_FLAGS: tuple[tuple[Any, str], ...] = (
    (torch.utils.deterministic, "fill_uninitialized_memory"),
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.mkldnn, "enabled"),
)
_COMPILERS = ("torch._dynamo.config", "torch._inductor.config")


@dataclass(frozen=True)
class ProcessSettings:
    """torch's settings of a process.

    Attributes:
        calls: Those that functions get and set, by name.
        flags: Those that are attributes, by their place in a fixed list.
        start_method: The start method of dataloader processes. A process that was spawned would spawn its own, each of
            which imports everything again.
        recursion_limit: Python's, which pickling deep networks needs.
        compilers: The settings of `torch.compile`, by module, if it is loaded.

    Example:
        >>> settings = ProcessSettings.capture()
        >>> before = torch.get_default_dtype()
        >>> torch.set_default_dtype(torch.float64)
        >>> settings.apply()
        >>> torch.get_default_dtype() == before
        True
    """

    calls: dict[str, Any]
    flags: dict[int, Any]
    start_method: str
    recursion_limit: int
    compilers: dict[str, dict[str, Any]]

    @classmethod
    def capture(cls) -> ProcessSettings:
        """Reads the settings of this process."""
        calls = {name: _read(get) for name, (get, _) in _CALLS.items()}
        flags = {index: _read(partial(getattr, *flag)) for index, flag in enumerate(_FLAGS)}
        compilers = {name: _compiler_settings(sys.modules[name]) for name in _COMPILERS if name in sys.modules}
        return cls(calls, flags, _start_method(), sys.getrecursionlimit(), compilers)

    def apply(self) -> None:
        """Apply the settings that differ in this process."""
        multiprocessing.set_start_method(self.start_method, force=True)
        sys.setrecursionlimit(self.recursion_limit)
        for name, (get, put) in _CALLS.items():
            if self.calls[name] is not None and _read(get) != self.calls[name]:
                put(self.calls[name])
        for index, (owner, name) in enumerate(_FLAGS):
            wanted = self.flags[index]
            if wanted is not None and _read(partial(getattr, owner, name)) != wanted:
                setattr(owner, name, wanted)
        for name, wanted in self.compilers.items():
            module = importlib.import_module(name)
            found = _compiler_settings(module)
            for key in wanted:
                if key in found and found[key] != wanted[key]:
                    setattr(module, key, wanted[key])


def _start_method() -> str:
    """Returns how data loaders start their workers in a unit's process."""
    chosen, known = multiprocessing.get_start_method(allow_none=True), multiprocessing.get_all_start_methods()
    if chosen in known:  # joblib has a method of its own, which there is only in its processes
        return chosen
    # Python 3.14 would start a process that imports everything again; the first method is the default
    return "fork" if sys.platform == "linux" else known[0]


def _compiler_settings(module: Any) -> dict[str, Any]:
    settings: dict[str, Any] = pickle.loads(module.save_config())  # those that can be sent
    return settings


def _read(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (AttributeError, RuntimeError):  # not in this release, or torch will not say since a newer way was used
        return None


def _flushes_denormals() -> bool:
    """Return whether numbers too small for full precision count as zero; torch has a setter, but no getter."""
    return (torch.tensor(5e-324, dtype=torch.float64) * 1.0).item() == 0.0
