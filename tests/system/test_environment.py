"""The machine is named without anything that identifies its owner."""

from mcpmq.system.environment import describe_machine


def test_the_machine_is_named_by_processor_cores_memory_and_system() -> None:
    """Nothing else is told, and everything is filled in."""
    told = describe_machine()
    assert list(told) == ["processor", "cores", "memory_bytes", "system"]
    assert all(told.values())
    assert int(told["memory_bytes"]) > 100_000_000
