"""Quantizes the language model every way that is compared, each tool in an environment and a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "peers"
ENVIRONMENTS, SETS, CHECKPOINTS, MADE, COSTS = (
    WORK / name for name in ("environments", "sets", "checkpoints", "made", "costs")
)
MODELS = {"reference": ROOT / "calibration" / "reference", "plain": WORK / "plain"}
# One thread for everybody: processor seconds then compare. The tools must not look for anything on a network.
SETTING = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
# Compiled once an installation, not once a model.
AFTERWARDS = {"gptqmodel": "from gptqmodel import extension; extension.load('pack_block_cpu')"}


Told = tuple[str, str, Mapping[str, object]]  # tool, method, options


@dataclass(frozen=True, slots=True)
class Way:
    """A model, what a tool is shown of it (a folder of SETS, or nothing), the tool, and what it is told."""

    model: str
    shown: str
    tool: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.tool}-{self.method}-{self.shown}"

    def command(self, out: Path) -> list[object]:
        """What is run to make it."""
        if self.tool != "mcpmq":
            script, checkpoint = HERE / "tools" / f"with_{self.tool}.py", CHECKPOINTS / self.model / self.shown
            return [python_of(self.tool), "-P", script, checkpoint, out, json.dumps(self.options)]
        recipe = HERE / "recipes" / f"{self.method}.toml"
        seeing = [] if self.shown == "nothing" else ["--calibration", SETS / self.shown]
        words = ["quantize", MODELS[self.model], out, "--recipe", recipe, *seeing]
        return [sys.executable, "-m", "mcpmq", "--quiet", *words]


OURS: Told = ("mcpmq", "smooth-gptq", {})
UNSMOOTHED: Told = ("mcpmq", "gptq", {})
NEAREST: Told = ("mcpmq", "nearest", {})
GPTQ: Told = ("gptqmodel", "gptq", {})
SORTED_GPTQ: Told = ("gptqmodel", "gptq-desc-act", {"desc_act": True})
AWQ: Told = ("gptqmodel", "awq", {"method": "awq"})
UNTUNED: Told = ("autoround", "nearest", {"iters": 0})
TUNED: Told = ("autoround", "200-steps", {"iters": 200})
# On each model the first is ours, shown images: the others are paired with it.
WAYS = (
    *(
        Way("reference", shown, *told)
        for told in (OURS, UNSMOOTHED, GPTQ, SORTED_GPTQ, TUNED)
        for shown in ("images", "text")
    ),
    *(Way("reference", "images", *told) for told in (AWQ, UNTUNED)),
    Way("reference", "nothing", *NEAREST),
    *(Way("plain", "images", *told) for told in (OURS, UNSMOOTHED, GPTQ, SORTED_GPTQ)),
    Way("plain", "nothing", *NEAREST),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process and its children took, from its start to its end."""

    seconds: float
    processor_seconds: float
    peak_resident_bytes: int


def python_of(tool: str) -> Path:
    """The interpreter of a tool's own environment."""
    return ENVIRONMENTS / tool / "bin" / "python"


def install(tool: str) -> None:
    """Make a tool's environment from its pins, unless it is there: the tools agree neither on numpy nor on torch."""
    ready = ENVIRONMENTS / tool / "ready"
    if ready.is_file():
        return
    venv.create(ready.parent, with_pip=True, clear=True)
    pins = HERE / "tools" / f"{tool}.txt"
    subprocess.run([python_of(tool), "-m", "pip", "install", "--quiet", "--requirement", pins], check=True)
    subprocess.run([python_of(tool), "-c", AFTERWARDS.get(tool, "")], check=True)
    ready.touch()


def make(way: Way) -> Cost:
    """Quantize one way, unless it is there; what it cost when it was made.

    Raises:
        SystemExit: the tool failed; its log tells why.
    """
    cost, out, log = COSTS / f"{way.name}.json", MADE / way.name, WORK / f"{way.name}.log"
    if not cost.is_file():
        shutil.rmtree(out, ignore_errors=True)
        found = _timed(way.command(out), log)
        cost.parent.mkdir(exist_ok=True)
        cost.write_text(json.dumps(asdict(found)))
    return Cost(**json.loads(cost.read_text()))


def _timed(words: Sequence[object], log: Path) -> Cost:
    start = time.monotonic()
    with log.open("w") as file:
        told = {**os.environ, **SETTING, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([str(word) for word in words], cwd=WORK, env=told, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed, see {log}")
    return Cost(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
