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


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        names = [line.partition(":")[2] for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return " ".join(names[0].split())
    return platform.processor() or platform.machine()
