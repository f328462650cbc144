"""The properties of a machine that a unit's bits depend on, so that units are trained only where they are the same.

Run as `python -m lightning_s3t.executors.cluster.fingerprint DEVICE`, it prints those of its machine as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning_s3t
from lightning_s3t.engine.versions import versions

# libraries that often prepare rows, besides those in the provenance
_OF_DATA = ("numpy", "pillow", "scipy", "tokenizers", "torchvision", "torchaudio")
# of an ARM processor, which has no model name
_OF_PROCESSOR = ("model name", "CPU implementer", "CPU part", "CPU variant")

Fingerprint = dict[str, str]
"""Names of properties, and their values."""


def fingerprint(device: str) -> Fingerprint:
    """Return the properties of this machine and process that a unit's bits may depend on.

    The number of threads is not among them, because the script's number is set everywhere. On a GPU this creates a
    context, so call `fingerprint_apart` where one would be in the way.

    Args:
        device: The type of the device that trains units: "cpu" or "cuda".

    Example:
        >>> import torch
        >>> found = fingerprint("cpu")
        >>> found["torch"] == torch.__version__, "GPU" in found
        (True, False)
    """
    import torch

    found = {
        **versions(),
        **_versions_of_data(),
        "torch": torch.__version__,
        "code of lightning-s3t": _code(),
        "CUDA of torch": str(torch.version.cuda),
        "C library": " ".join(platform.libc_ver()),
        "processor": _processor(),
        "CPU capability of torch": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "GPU": gpu.name,
            "compute capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": str(gpu.multi_processor_count),
            "cuDNN": str(torch.backends.cudnn.version()),
            "GPU driver": _gpu_driver(),
        }
    return found


def fingerprint_apart(device: str) -> Fingerprint:
    """Return the properties of this machine, with this process's environment, from a process of their own.

    Args:
        device: The type of the device.

    Raises:
        OSError: They could not be read.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise OSError(f"the properties of the machine could not be read: {said}")
    found: Fingerprint = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return in what a machine differs from another, for people.

    Args:
        expected: The properties of the script's machine.
        found: Those of the other.

    Example:
        >>> differences({"torch": "2.15.0", "GPU": "H200"}, {"torch": "2.15.0", "GPU": "L4"})
        ["GPU is 'L4' instead of 'H200'"]
        >>> differences({}, {"timm": "1.0.31"})
        ["timm is '1.0.31' instead of missing"]
    """
    names = [*expected, *(name for name in found if name not in expected)]
    return [
        f"{name} is {_shown(found.get(name))} instead of {_shown(expected.get(name))}"
        for name in names
        if found.get(name) != expected.get(name)
    ]


def _shown(value: str | None) -> str:
    return "missing" if value is None else repr(value)


def _versions_of_data() -> dict[str, str]:
    found = {}
    for package in _OF_DATA:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _code() -> str:
    """Return a digest of this package's code: a clone has the version of the release that it comes after."""
    folder, digest = Path(lightning_s3t.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _processor() -> str:
    """Return the model of the processor: libraries choose kernels by it, which may add up in another order."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = information.read_text().partition("\n\n")[0]
    fields = dict(re.findall(r"^([^:\n]+?)\s*:\s*(.*)$", first, re.MULTILINE))
    return " ".join([platform.machine(), *(fields[name] for name in _OF_PROCESSOR if name in fields)])


def _gpu_driver() -> str:
    information = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", information.read_text()) if information.exists() else None
    return found.group() if found is not None else "unknown"


if __name__ == "__main__":
    print(json.dumps(fingerprint(sys.argv[1])))
