"""Versions of torch, of the libraries it computes with, and of the driver."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_AMD_DRIVER = Path("/sys/module/amdgpu/version")


def software_versions() -> dict[str, str]:
    """Return the versions of hotloop, torch and Python, and the system's name and release."""
    return {
        "hotloop": _own_version(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _own_version() -> str:
    """Return the installed version; hotloop may run from its sources without one."""
    try:
        return importlib.metadata.version("hotloop")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def backend_versions(device: torch.device) -> dict[str, str]:
    """Return the versions of the libraries that compute on ``device``, by name.

    CUDA, cuDNN and NCCL, or ROCm, MIOpen and RCCL, with the driver; macOS for MPS; MKL and oneDNN
    for the CPU. What cannot be told is left out.
    """
    versions: dict[str, str | None] = {}
    if device.type == "cuda":
        is_rocm = torch.version.hip is not None
        versions["ROCm" if is_rocm else "CUDA"] = torch.version.hip or torch.version.cuda
        versions["MIOpen" if is_rocm else "cuDNN"] = _cudnn_version(is_rocm)
        versions["RCCL" if is_rocm else "NCCL"] = _nccl_version()
    elif device.type == "mps":
        versions["macOS"] = platform.mac_ver()[0]
    elif device.type == "cpu":
        built_with = torch.__config__.show()
        versions["MKL"] = _search(r"Math Kernel Library Version ([\d.]+)", built_with)
        versions["oneDNN"] = _search(r"MKL-DNN v([\d.]+)", built_with)
    else:
        versions[device.type.upper()] = getattr(torch.version, device.type, None)
    versions["driver"] = driver_version(device)
    return {name: version for name, version in versions.items() if version}


def driver_version(device: torch.device) -> str | None:
    """Return the version of an accelerator's driver; None where the system does not tell it."""
    if device.type == "cuda" and torch.version.hip is not None:
        return _AMD_DRIVER.read_text().strip() if _AMD_DRIVER.exists() else None
    if device.type == "cuda":
        if _NVIDIA_DRIVER.exists():
            return _search(r"Kernel Module\D*?([\d.]+)", _NVIDIA_DRIVER.read_text())
        return _ask_nvidia_smi()
    if device.type == "xpu":
        properties: Any = torch.xpu.get_device_properties(device)
        return str(properties.driver_version)
    return None


def _ask_nvidia_smi() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no such program here, or it does not answer: the driver cannot be told
    return done.stdout.split("\n")[0].strip() or None


def _cudnn_version(is_rocm: bool) -> str | None:
    """Return cuDNN's version with its dots, which the integer lacks: 90501 is 9.5.1."""
    cudnn: Any = torch.backends.cudnn
    number = cudnn.version() if cudnn.is_available() else None
    if number is None or is_rocm:
        return None if number is None else str(number)
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _nccl_version() -> str | None:
    """Return the version of what several accelerators exchange gradients through."""
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    nccl: Any = torch.cuda.nccl
    return ".".join(map(str, nccl.version()))


def _search(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return None if found is None else found.group(1)
