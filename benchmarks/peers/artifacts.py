"""Quantize the language model with every tool, in an environment and a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.commands import REFERENCE, ROOT
from benchmarks.process_cost import Cost, run_measured

HERE = Path(__file__).parent
WORK = ROOT / "build" / "peers"
ENVIRONMENTS, SETS, CHECKPOINTS, OUTPUTS, COSTS = (
    WORK / name for name in ("environments", "sets", "checkpoints", "outputs", "costs")
)
MODELS = {"reference": REFERENCE, "unscaled": WORK / "unscaled"}
# One thread for every tool, so that processor seconds compare; no network access.
ENVIRONMENT_VARIABLES = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
# Compiled once per installation, not once per model.
POST_INSTALL = {"gptqmodel": "from gptqmodel import extension; extension.load('pack_block_cpu')"}


VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
ToolOptions = tuple[str, str, Mapping[str, object]]  # tool, method, options


@dataclass(frozen=True, slots=True)
class Variant:
    """Model, calibration data (a folder of SETS, or `nothing`), tool, method and options of the tool."""

    model: str
    calibration_data: str
    tool: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.tool}-{self.method}-{self.calibration_data}"

    def command(self, out: Path) -> list[object]:
        """Return the command that writes the artifact."""
        if self.tool != "mcpmq":
            script, checkpoint = (
                HERE / "tools" / f"with_{self.tool}.py",
                CHECKPOINTS / self.model / self.calibration_data,
            )
            return [tool_python(self.tool), "-P", script, checkpoint, out, json.dumps(self.options)]
        recipe = HERE / "recipes" / f"{self.method}.toml"
        calibration = [] if self.calibration_data == "nothing" else ["--calibration", SETS / self.calibration_data]
        words = ["quantize", MODELS[self.model], out, "--recipe", recipe, *calibration]
        return [sys.executable, "-m", "mcpmq", "--quiet", *words]


MCPMQ_AWQ_GPTQ: ToolOptions = ("mcpmq", "awq-gptq", {})
MCPMQ_GPTQ: ToolOptions = ("mcpmq", "gptq", {})
MCPMQ_RTN: ToolOptions = ("mcpmq", "rtn", {})
GPTQMODEL_GPTQ: ToolOptions = ("gptqmodel", "gptq", {})
GPTQMODEL_DESC_ACT: ToolOptions = ("gptqmodel", "gptq-desc-act", {"desc_act": True})
GPTQMODEL_AWQ: ToolOptions = ("gptqmodel", "awq", {"method": "awq"})
AUTOROUND_RTN: ToolOptions = ("autoround", "rtn", {"iters": 0})
AUTOROUND_200_STEPS: ToolOptions = ("autoround", "200-steps", {"iters": 200})
# The others of each model are compared with its first variant.
VARIANTS = (
    *(
        Variant("reference", data, *options)
        for options in (MCPMQ_AWQ_GPTQ, MCPMQ_GPTQ, GPTQMODEL_GPTQ, GPTQMODEL_DESC_ACT, AUTOROUND_200_STEPS)
        for data in ("images", "text")
    ),
    *(Variant("reference", "images", *options) for options in (GPTQMODEL_AWQ, AUTOROUND_RTN)),
    Variant("reference", "nothing", *MCPMQ_RTN),
    *(
        Variant("unscaled", "images", *options)
        for options in (MCPMQ_AWQ_GPTQ, MCPMQ_GPTQ, GPTQMODEL_GPTQ, GPTQMODEL_DESC_ACT)
    ),
    Variant("unscaled", "nothing", *MCPMQ_RTN),
)


def tool_python(tool: str) -> Path:
    """Return the interpreter of the environment of a tool."""
    return ENVIRONMENTS / tool / "bin" / "python"


def install_tool(tool: str) -> None:
    """Create the environment of a tool from its pinned versions; the tools need different numpy and torch versions."""
    ready = ENVIRONMENTS / tool / "ready"
    if ready.is_file():
        return
    venv.create(ready.parent, with_pip=True, clear=True)
    pins = HERE / "tools" / f"{tool}.txt"
    subprocess.run([tool_python(tool), "-m", "pip", "install", "--quiet", "--requirement", pins], check=True)
    subprocess.run([tool_python(tool), "-c", POST_INSTALL.get(tool, "")], check=True)
    ready.touch()


def tool_versions(tool: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages in the environment of a tool."""
    words: list[str | Path] = [tool_python(tool), "-c", VERSIONS, *packages]
    found: dict[str, str] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found


def quantize_variant(variant: Variant) -> Cost:
    """Quantize a variant unless its artifact exists, and return the recorded cost.

    Raises:
        SystemExit: the tool failed; the message names its log.
    """
    cost, out, log = COSTS / f"{variant.name}.json", OUTPUTS / variant.name, WORK / f"{variant.name}.log"
    if not cost.is_file():
        shutil.rmtree(out, ignore_errors=True)
        measured = measure_command(variant.command(out), log)
        cost.parent.mkdir(exist_ok=True)
        cost.write_text(json.dumps(asdict(measured)))
    return Cost(**json.loads(cost.read_text()))


def measure_command(words: Sequence[object], log: Path, folder: Path = WORK) -> Cost:
    """Run a command in a folder and return its cost; its output goes to a log file.

    Raises:
        SystemExit: the command failed; the message names the log.
    """
    variables = {**os.environ, **ENVIRONMENT_VARIABLES, "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        status, cost = run_measured(words, folder, file, file, variables)
    if status:
        raise SystemExit(f"failed, see {log}")
    return cost
