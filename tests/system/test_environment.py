"""Description of the machine and the installed packages."""

from importlib.metadata import version
from pathlib import Path

import pytest

from mcpmq.system import environment
from mcpmq.system.environment import describe_machine, installed_versions, kernel_selection


def test_the_machine_is_described_by_processor_cores_memory_and_system() -> None:
    """All four are filled in, and nothing identifies the owner."""
    machine = describe_machine()

    assert list(machine) == ["processor", "cores", "memory_bytes", "system"]
    assert all(machine.values())
    assert int(machine["memory_bytes"]) > 100_000_000


def test_versions_of_missing_packages_are_omitted() -> None:
    """Only installed packages are in the result."""
    assert installed_versions(["torch", "no-such-package"]) == {"torch": version("torch")}


def test_kernels_are_selected_by_processor_features_and_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features are those of the first core; only variables of torch and its libraries count."""
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\nflags\t\t: fpu\n")
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "cpuinfo")
    before = kernel_selection()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("OTHER_CPU_CAPABILITY", "avx2")

    assert before[-1] == "fpu avx2"
    assert kernel_selection() == ["ATEN_CPU_CAPABILITY=avx2", *before]
