"""Fuzzed input files: every command ends with success, or with a message and a hint, within its limits."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import mutations
from tests.campaign.isolation import Limits, run
from tests.campaign.workspace import copy_inputs, replace, update_hash

LIMITS = Limits(seconds=60, memory_nbytes=2 << 30)
SPECIAL_SHARE = 0.08  # of the inputs: the file is replaced by a folder, a FIFO or a link

Arguments = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file, the inputs that its commands need, and the commands that read it."""

    name: str
    pattern: str  # of the files, relative to the inputs
    inputs: tuple[str, ...]
    mutate: Callable[[bytes, random.Random], bytes]
    commands: tuple[tuple[Arguments, ...], ...]  # alternatives; each is one command or several in sequence


INSPECT = (("inspect", "checkpoint"),)
PLAN = (("plan", "checkpoint", "-r", "phone-int4", "-f", "gguf", "-f", "onnx"),)
QUANTIZE = ("quantize", "checkpoint", "out", "-r", "phone-int4")
IMATRIX = ("imatrix", "checkpoint", "out", "--calibration", "set")
CALIBRATE = ("quantize", "checkpoint", "out", "-r", "recipe.toml", "--calibration", "set")
PACKAGE = ("package", "gguf", "onnx", "out", "--source", "checkpoint", "--report", "report.json")
READ_CHECKPOINT = (
    *(INSPECT, PLAN, PLAN, (QUANTIZE, ("export", "out", "exported", "-f", "gguf"))),
    *((QUANTIZE, ("export", "out", "exported", "-f", "onnx")), (IMATRIX,)),
)
CHECKPOINT, SAMPLES = ("checkpoint", "set"), ("checkpoint", "set", "recipe.toml")
JSON, BYTES = mutations.mutate_json, mutations.mutate_bytes


def _artifact(name: str, pattern: str, mutate: Callable[[bytes, random.Random], bytes], *more: Arguments) -> Target:
    """Return the target of a file of an artifact."""
    commands = (("inspect", name), ("verify", name, "--no-load"), ("diff", name, "onnx"), *more)
    inputs = ("checkpoint", "set", "onnx", *({name} - {"onnx"}))
    return Target(f"{name}/{pattern}", f"{name}/{pattern}", inputs, mutate, tuple((command,) for command in commands))


EXPORTS = tuple(("export", "quantized", "out", "-f", format) for format in ("gguf", "onnx", "gptq", "awq"))
RELEASE = (*CHECKPOINT, "gguf", "onnx", "report.json", "gate.toml")
CHECK = ("check", "report.json", "--gate", "gate.toml", "--junit", "j", "--sarif", "s", "--html", "h", "--summary", "m")
WITH_BASELINE = ("check", "report.json", "--gate", "gate.toml", "--baseline", "report.json")
REPORT = ("report", "report.json", "report.json")
TARGETS = (
    Target("config", "checkpoint/config.json", CHECKPOINT, JSON, READ_CHECKPOINT),
    Target("weights", "checkpoint/*.safetensors", CHECKPOINT, mutations.mutate_safetensors, READ_CHECKPOINT),
    Target("index", "checkpoint/*.index.json", CHECKPOINT, JSON, READ_CHECKPOINT),
    Target("tokenizer", "checkpoint/tokenizer*.json", CHECKPOINT, JSON, READ_CHECKPOINT[2:]),
    Target("generation config", "checkpoint/generation_config.json", CHECKPOINT, JSON, READ_CHECKPOINT[2:]),
    Target("preprocessor", "checkpoint/preprocessor_config.json", CHECKPOINT, JSON, READ_CHECKPOINT[2:]),
    Target("model card", "checkpoint/README.md", RELEASE, BYTES, ((PACKAGE,),)),
    Target(
        "sample set",
        "set/manifest.jsonl",
        SAMPLES,
        mutations.mutate_json_lines,
        ((("inspect", "set"),), (IMATRIX,), (CALIBRATE,)),
    ),
    Target("image", "set/*.png", SAMPLES, BYTES, ((("inspect", "set"),), (IMATRIX,))),
    Target(
        "recipe",
        "recipe.toml",
        SAMPLES,
        mutations.mutate_toml,
        ((("plan", "checkpoint", "-r", "recipe.toml"),), (CALIBRATE,)),
    ),
    Target(
        "gate",
        "gate.toml",
        RELEASE,
        mutations.mutate_toml,
        ((CHECK,), (WITH_BASELINE,), ((*PACKAGE, "--gate", "gate.toml"),)),
    ),
    Target(
        "report",
        "report.json",
        RELEASE,
        JSON,
        ((REPORT,), ((*REPORT, "--html"),), (CHECK,), (WITH_BASELINE,), (PACKAGE,)),
    ),
    _artifact("quantized", "mcpmq.json", JSON, *EXPORTS),
    _artifact("quantized", "blocks/*.safetensors", mutations.mutate_safetensors, *EXPORTS),
    _artifact("quantized", "*.json", JSON, *EXPORTS),
    _artifact("gguf", "mcpmq.json", JSON),
    _artifact("gguf", "*.gguf", BYTES, ("imatrix", "checkpoint", "out", "--calibration", "set", "--mmproj", "@")),
    _artifact("onnx", "mcpmq.json", JSON),
    _artifact("onnx", "**/*.onnx", BYTES),
    _artifact("onnx", "**/*.json", JSON),
    _artifact("gptq", "*.json", JSON),
    _artifact("gptq", "*.safetensors", mutations.mutate_safetensors),
    _artifact("imatrix", "mcpmq.json", JSON, (*IMATRIX, "--add", "imatrix")),
    _artifact("imatrix", "*.gguf", BYTES, (*IMATRIX, "--add", "imatrix")),
    _artifact("release", "**/*.json", JSON),
)


def fuzz(inputs: Path, case: Path, generator: random.Random, target: Target | None = None) -> tuple[str, str]:
    """Run one command on inputs with one mutated file; return a description and the problem, or an empty string."""
    target = target or generator.choice(TARGETS)
    copy_inputs(inputs, case, target.inputs)
    file = generator.choice(sorted(case.glob(target.pattern)))
    if generator.random() < SPECIAL_SHARE:
        kind = mutations.replace_by_special_file(file, generator)
    else:
        kind = "mutated"
        replace(file, target.mutate(file.read_bytes(), generator))
        artifact = case / file.relative_to(case).parts[0]
        if file.name != "mcpmq.json" and (artifact / "mcpmq.json").is_file() and generator.random() < 0.8:
            update_hash(artifact, file)
    commands = generator.choice(target.commands)
    name = file.relative_to(case).as_posix()
    for command in commands:
        arguments = [name if word == "@" else word for word in command]
        outcome = run(arguments, case, LIMITS)
        if outcome.problem:
            return f"mcpmq {' '.join(arguments)}, {kind} {name}", outcome.problem
        if outcome.code:
            break
    return f"{kind} {name}", ""
