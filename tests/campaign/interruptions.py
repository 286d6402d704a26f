"""Kills, file system faults and concurrent runs of every writing command; the next run ends with the same bytes."""

import errno
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.campaign.isolation import Hook, Limits, count_into, fail_at, kill_at, run, start
from tests.campaign.workspace import copy_inputs, snapshot

LIMITS = Limits(seconds=240, memory_nbytes=8 << 30)
FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES)
MAX_FILE_NBYTES = 2 << 20  # of the outputs of the tiny checkpoint
SPARE_NBYTES = (0, 4 << 20)  # free space of a small disk


@dataclass(frozen=True, slots=True)
class Scenario:
    """A writing command and its inputs."""

    name: str
    inputs: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Files after an undisturbed run, its number of changes, and its duration."""

    files: dict[str, bytes | str]
    changes: int
    seconds: float


SOURCE, CALIBRATION = ("quantize", "checkpoint", "out"), ("--calibration", "set")
EVALUATION = ("--against", "checkpoint", "--eval-set", "set", "--threads", "1", "--out", "results")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("quantize", ("checkpoint",), (*SOURCE, "-r", "phone-int4")),
        Scenario("calibrate", ("checkpoint", "set", "recipe.toml"), (*SOURCE, "-r", "recipe.toml", *CALIBRATION)),
        Scenario("export gguf", ("quantized",), ("export", "quantized", "out", "-f", "gguf")),
        Scenario("export onnx", ("quantized",), ("export", "quantized", "out", "-f", "onnx")),
        Scenario("imatrix", ("checkpoint", "set"), ("imatrix", "checkpoint", "out", *CALIBRATION)),
        Scenario(
            "package",
            ("checkpoint", "gguf", "onnx", "report.json"),
            ("package", "gguf", "onnx", "out", "--source", "checkpoint", "--report", "report.json"),
        ),
        Scenario(
            "search",
            ("checkpoint", "set"),
            ("search", "checkpoint", "out.toml", "-f", "gguf", *CALIBRATION, "--max-size", "1.5MB"),
        ),
        Scenario("evaluate", ("checkpoint", "set", "gguf"), ("evaluate", "gguf", *EVALUATION)),
        Scenario(
            "convert",
            ("checkpoint", "set"),
            ("convert", "checkpoint", "out", "-f", "gguf", "-r", "phone-int4", *CALIBRATION, "--threads", "1"),
        ),
    )
}
FAST = ("quantize", "export gguf", "export onnx", "package")
RIVALS = {"quantize": "calibrate", "calibrate": "quantize", "export gguf": "export onnx", "export onnx": "export gguf"}


@cache
def reference(inputs: Path, work: Path, name: str) -> Reference:
    """Run a command without disturbance, once."""
    scenario, case = SCENARIOS[name], work / f"reference {name}" / "case"
    copy_inputs(inputs, case, scenario.inputs)
    counter = case.parent / "changes"
    outcome = run(scenario.arguments, case, LIMITS, count_into(counter))
    assert outcome.code == 0, outcome.stderr
    return Reference(snapshot(case), int(counter.read_text() or 0), outcome.seconds)


def kill(inputs: Path, case: Path, generator: random.Random, names: tuple[str, ...]) -> tuple[str, str]:
    """Kill a command before a random change or at a random time, and run it again."""
    name = generator.choice(names)
    expected = reference(inputs, case.parent, name)
    scenario = SCENARIOS[name]
    copy_inputs(inputs, case, scenario.inputs)
    if generator.random() < 0.7:
        number = generator.randint(1, expected.changes)
        process, label = start(scenario.arguments, case, LIMITS, kill_at(number)), f"before change {number}"
        process.wait(LIMITS.seconds)
    else:
        seconds = generator.uniform(0, expected.seconds)
        process, label = start(scenario.arguments, case, LIMITS), f"after {seconds:.2f} s"
        process.kill_after(seconds)
    if orphans := process.orphans():
        return f"{name} killed {label}", f"{len(orphans)} worker processes remain"
    return f"{name} killed {label}", _resume(scenario, case, expected)


def fault(inputs: Path, case: Path, generator: random.Random, names: tuple[str, ...]) -> tuple[str, str]:
    """Run a command whose changes of files fail from a random one on, or whose files have a limited size."""
    name = generator.choice(names)
    expected = reference(inputs, case.parent, name)
    scenario = SCENARIOS[name]
    copy_inputs(inputs, case, scenario.inputs)
    limits, hook, label = _random_fault(generator, expected)
    outcome = run(scenario.arguments, case, limits, hook)
    return f"{name} with {label}", outcome.problem or _resume(scenario, case, expected)


def _random_fault(generator: random.Random, expected: Reference) -> tuple[Limits, Hook | None, str]:
    if generator.random() < 0.25:
        nbytes = generator.randrange(MAX_FILE_NBYTES)
        return Limits(LIMITS.seconds, LIMITS.memory_nbytes, nbytes), None, f"files of at most {nbytes:,} bytes"
    number, code = generator.randint(1, expected.changes), generator.choice(FAULTS)
    forever = generator.random() < 0.7
    label = f"{errno.errorcode[code]} at change {number}" + (" and later ones" if forever else "")
    return LIMITS, fail_at(number, code, forever=forever), label


def disk(inputs: Path, case: Path, generator: random.Random, names: tuple[str, ...]) -> tuple[str, str]:
    """Run a command on a small disk or on a read-only disk, and again after the fault is mended; requires root."""
    name = generator.choice(names)
    expected = reference(inputs, case.parent, name)
    scenario = SCENARIOS[name]
    case.mkdir(parents=True)
    with _small_disk(case):
        copy_inputs(inputs, case / "files", scenario.inputs, link=False)
        for folder in ("home", "tmp"):
            (case / "files" / folder).mkdir()
        used = sum(file.stat().st_blocks * 512 for file in case.rglob("*"))
        read_only, spare = generator.random() < 0.3, generator.randrange(*SPARE_NBYTES)
        _remount(case, "ro" if read_only else f"size={used + spare}")
        outcome = run(scenario.arguments, case / "files", LIMITS, log=case.parent)
        _remount(case, "rw,size=1g")
        label = "a read-only disk" if read_only else f"{spare:,} bytes free"
        return f"{name} on {label}", outcome.problem or _resume(scenario, case / "files", expected)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount file systems."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with suppress(OSError, subprocess.CalledProcessError), _small_disk(folder):
            return True
        return False
    finally:
        folder.rmdir()


def pair(inputs: Path, case: Path, generator: random.Random, names: tuple[str, ...]) -> tuple[str, str]:
    """Run a command twice, or two commands, at nearly the same time into one output."""
    name = generator.choice(names)
    other = generator.choice((name, RIVALS.get(name, name)))
    scenarios = [SCENARIOS[one] for one in (name, other)]
    expected = [reference(inputs, case.parent, one) for one in (name, other)]
    copy_inputs(inputs, case, tuple({item for scenario in scenarios for item in scenario.inputs}))
    first = start(scenarios[0].arguments, case, LIMITS)
    delay = generator.choice((0.0, generator.uniform(0, expected[0].seconds)))
    first.sleep(delay)
    second = start(scenarios[1].arguments, case, LIMITS)
    outcomes = [process.wait(LIMITS.seconds) for process in (first, second)]
    label = f"{name} and {other} after {delay:.2f} s"
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    return label, problems[0] if problems else _pair_problem(case, expected, [one.code for one in outcomes])


def _pair_problem(case: Path, expected: list[Reference], codes: list[int]) -> str:
    if 0 not in codes:
        return f"no run succeeded: exit codes {codes}"
    found = {path: content for path, content in snapshot(case).items() if path.startswith(("out", ".", "tmp"))}
    differences = [
        difference_of(
            {path: content for path, content in one.files.items() if path.startswith(("out", ".", "tmp"))}, found
        )
        for one, code in zip(expected, codes, strict=True)
        if code == 0
    ]
    return "" if "" in differences else differences[0]


def _resume(scenario: Scenario, case: Path, expected: Reference) -> str:
    if not difference_of(expected.files, snapshot(case)):
        return ""  # complete; commands that do not resume reject an existing output
    outcome = run(scenario.arguments, case, LIMITS)
    is_complete = not difference_of(expected.files, snapshot(case))  # the next run removed the lock file
    if outcome.problem or (outcome.code and not is_complete):
        return f"the next run failed: {outcome.problem or outcome.stderr.strip()[:300]}"
    return difference_of(expected.files, snapshot(case))


def difference_of(expected: dict[str, bytes | str], found: dict[str, bytes | str]) -> str:
    """Return a description of the first missing, additional or different file, or an empty string."""
    if left := sorted(found.keys() - expected.keys()):
        return f"`{left[0]}` is left behind"
    if missing := sorted(expected.keys() - found.keys()):
        return f"`{missing[0]}` is missing"
    changed = [name for name in expected if expected[name] != found[name]]
    return f"`{changed[0]}` has other bytes" if changed else ""
