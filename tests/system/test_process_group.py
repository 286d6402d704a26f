"""Processes of a group exchange values and add tensors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcpmq.execution.device import CPU
from mcpmq.system.process_group import GroupError, from_bytes, join_group, to_bytes

SCRIPT = """
import sys, torch
from pathlib import Path
from mcpmq.system.process_group import join_group
folder, rank, size, dies = Path(sys.argv[1]), *map(int, sys.argv[2:])
with join_group(folder, rank, size, torch.device("cpu")) as group:
    assert group.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    if dies:
        import os
        os._exit(9)
    group.add(torch.arange(12.0).reshape(3, 4)[:, 1:] * 10**rank)
"""


def start(folder: Path, rank: int, dies: bool) -> "subprocess.Popen[bytes]":
    """Start a process of a group of three."""
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(rank), "3", str(int(dies))])


def test_tensors_are_added_in_the_first_process(tmp_path: Path) -> None:
    """Also those that are not contiguous; all processes get the values of all."""
    processes = [start(tmp_path, rank, dies=False) for rank in (1, 2)]
    with join_group(tmp_path, 0, 3, CPU) as group:
        assert group.gather({"rank": 0}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        whole = torch.arange(12.0).reshape(3, 4)
        group.add(whole[:, 1:])

    assert torch.equal(whole[:, 1:], torch.arange(12.0).reshape(3, 4)[:, 1:] * 111)
    assert whole[:, 0].tolist() == [0.0, 4.0, 8.0]
    assert [one.wait(60) for one in processes] == [0, 0]


def test_a_process_that_dies_is_an_error_of_the_others(tmp_path: Path) -> None:
    """They do not wait for it."""
    processes = [start(tmp_path, rank, dies=True) for rank in (1, 2)]

    with join_group(tmp_path, 0, 3, CPU) as group:
        group.gather({"rank": 0})
        with pytest.raises(GroupError):
            group.add(torch.zeros(3, 3))

    assert [one.wait(60) for one in processes] == [9, 9]


def test_tensors_of_other_devices_arrive_on_the_device_of_the_reader() -> None:
    """Those in memory of the CPU stay there."""
    value = {"cpu": torch.arange(3), "nested": [(torch.ones(2), "text")]}

    found = from_bytes(to_bytes(value), torch.device("meta"))

    assert torch.equal(found["cpu"], torch.arange(3))
    assert torch.equal(found["nested"][0][0], torch.ones(2))
    assert found["nested"][0][1] == "text"
