"""Description of the machine and the installed packages."""

from importlib.metadata import version

from mcpmq.system.environment import describe_machine, installed_versions


def test_the_machine_is_described_by_processor_cores_memory_and_system() -> None:
    """All four are filled in, and nothing identifies the owner."""
    machine = describe_machine()

    assert list(machine) == ["processor", "cores", "memory_bytes", "system"]
    assert all(machine.values())
    assert int(machine["memory_bytes"]) > 100_000_000


def test_versions_of_missing_packages_are_omitted() -> None:
    """Only installed packages are in the result."""
    assert installed_versions(["torch", "no-such-package"]) == {"torch": version("torch")}
