"""The machine that figures were taken on, as the report names it."""

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

# What decides the bytes of an artifact, and what else does where samples pass through the model.
PACKAGES, PACKAGES_OF_THE_MODEL = ("mcpmq", "torch", "gguf", "xllamacpp"), ("transformers", "numpy", "pillow")


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, memory in bytes, and system."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        names = [line.partition(":")[2] for line in listed.read_text().splitlines() if line.startswith("model name")]
        if names:
            return " ".join(names[0].split())
    return platform.processor() or platform.machine()
