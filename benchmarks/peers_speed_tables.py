"""Tables of README.md and benchmarks/README.md about time and memory of other tools on equal weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import load_result, table, with_provenance
from benchmarks.peers_speed import JOBS

TOOLS = {
    "llamacpp": ("llama.cpp", "llama.cpp's converter and quantizer"),
    "genai": ("onnxruntime-genai", "the builder of onnxruntime-genai"),
    "gptqmodel": ("GPTQModel", "GPTQModel"),
    "autoround": ("AutoRound", "AutoRound with 200 steps"),
}
LABELS = {
    "gguf-q8_0": "GGUF Q8_0",
    "gguf-q4_0": "GGUF Q4_0",
    "gguf-q4_k": "GGUF Q4_K",
    "onnx-int4": "ONNX int4",
    "gptq-int4": "GPTQ int4",
    "autoround-int4": "calibrated int4",
}
HEADINGS = ("job", "tool", "processor s", "ratio", "target", "wall ratio", "peak RSS, MB", "ratio", "target")


def speed_table() -> str:
    """Return the table of benchmarks/README.md: mcpmq / other tool, and the ratios with their targets."""
    result = load_result("peers-speed")
    rest = "\n".join(missing_lines(result))
    return with_provenance(f"{table(HEADINGS, speed_rows(result), text_columns=2)}\n{rest}".rstrip(), result)


def speed_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a row for every job that ran."""
    for name, job in result["jobs"].items():
        ours, theirs = job["ours"], job["theirs"]
        seconds = f"{ours['processor_seconds']:.1f} / {theirs['processor_seconds']:.1f}"
        peaks = f"{ours['peak_rss_bytes'] / 1e6:,.0f} / {theirs['peak_rss_bytes'] / 1e6:,.0f}"
        time = [f"{job['processor_ratio']:.2f}", _target(job["time_target"]), f"{job['wall_ratio']:.2f}"]
        memory = [f"{job['memory_ratio']:.2f}", _target(job["memory_target"])]
        yield [LABELS[name], TOOLS[job["tool"]][0], seconds, *time, peaks, *memory]


def speed_lines(result: Mapping[str, Any] | None = None) -> list[str]:
    """Return the lines of README.md for the jobs that ran, by default of the committed result."""
    found = result or load_result("peers-speed")
    return [
        f"- {LABELS[name]}: {job['processor_ratio']:.2f} of the processor time of {TOOLS[job['tool']][1]},"
        f" {job['memory_ratio']:.2f} of its peak memory"
        for name, job in found["jobs"].items()
    ]


def missing_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for every tool that is not installed, and for every job that was not run."""
    for tool, reason in result["not_installed"].items():
        yield f"- {TOOLS[tool][0]}: not installed ({reason})"
    for name in result["not_run"]:
        yield f"- not run: {LABELS[name]}, against {TOOLS[JOBS[name].tool][0]}"


def _target(target: float | None) -> str:
    return "" if target is None else f"{target:g}"
