"""Describe the machine and the installed packages for reports and manifests."""

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

ARTIFACT_PACKAGES = ("mcpmq", "torch", "gguf", "xllamacpp")  # their versions can change the bytes of an artifact
MODEL_PACKAGES = ("transformers", "numpy", "pillow")  # the same, if the model runs during calibration
KERNEL_VARIABLES = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")  # prefixes of variables that select kernels of torch
CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, str | int]:
    """Return processor, cores, memory in bytes, and operating system."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of every package that is installed."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def kernel_selection() -> list[str]:
    """Return the facts by which torch selects its CPU kernels: features of the processor and environment variables.

    On systems without /proc/cpuinfo the features are unknown, and the name of the processor stands for them.
    """
    variables = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(KERNEL_VARIABLES)]
    return [*sorted(variables), *_cpu_info("flags")[:1]]


def _processor() -> str:
    names = _cpu_info("model name")
    return " ".join(names[0].split()) if names else platform.processor() or platform.machine()


def _cpu_info(field: str) -> list[str]:
    """Return the values of a field of /proc/cpuinfo, one for every core; none on other systems."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]
