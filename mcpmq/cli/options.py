"""Options that several commands share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

PIPELINE_PANEL, INSPECT_PANEL, SERVING_PANEL = "Pipeline steps", "Inspect and verify", "Run and serve"
FORMAT_NAMES = "gguf, onnx, gptq, awq, bnb, compressed-tensors or mlx"
DEFAULT_SEARCH_RECIPE = "calibrated-int4"


def at_revision(source: str, revision: str | None) -> str:
    """Return a hub id with its revision.

    Raises:
        typer.BadParameter: the source is a local folder, or has a revision already.
    """
    if revision is None:
        return source
    if "@" in source or Path(source).exists():
        reason = "is a local folder" if Path(source).exists() else "has a revision already"
        raise typer.BadParameter(f"`{source}` {reason}", param_hint="--revision")
    return f"{source}@{revision}"


def checkpoint_words(source: str, lora: list[Path] | None) -> list[str]:
    """Return the words of a command line that name a checkpoint and its adapters."""
    return [source, *(word for folder in lora or () for word in ("--lora", str(folder)))]


def set_words(calibration: Path | None, samples: int | None, seed: int) -> list[str]:
    """Return the words of a command line that name a calibration set and its draw."""
    draw = ["--samples", str(samples), *(["--seed", str(seed)] if seed else [])] if samples else []
    return ["--calibration", str(calibration or "DIR"), *(draw if calibration else [])]


def complete_recipe(incomplete: str) -> Iterator[str]:
    """Yield the names of built-in recipes for the completion of a shell."""
    from mcpmq.recipe import builtin_recipes

    yield from (name for name in builtin_recipes() if name.startswith(incomplete))


def complete_format(incomplete: str) -> Iterator[str]:
    """Yield the names of formats for the completion of a shell."""
    from mcpmq.formats import FORMATS

    yield from (name for name in FORMATS if name.startswith(incomplete))


def complete_device(incomplete: str) -> Iterator[str]:
    """Yield device names for the completion of a shell; which of them exist is not known without torch."""
    yield from (name for name in ("cpu", "cuda", "cuda:0", "cuda:1", "cuda:all") if name.startswith(incomplete))


def require_one_device(name: str | None) -> str | None:
    """Return the name of a device.

    Raises:
        typer.BadParameter: it names several.
    """
    if name and ("," in name or name == "cuda:all"):
        raise typer.BadParameter("an evaluation uses one device; several share the samples of a calibration")
    return name


Source = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="Folder of a Hugging Face checkpoint, or hub id: owner/name[@revision]"),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of a CHECKPOINT that is a hub id"),
]
Lora = Annotated[
    list[Path] | None,
    typer.Option("--lora", metavar="DIR", help="LoRA adapter to merge into the checkpoint; may be repeated, in order"),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be empty or missing")]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the files and bytes of a push, and send nothing")]
Samples = Annotated[
    int | None, typer.Option("--samples", metavar="N", min=1, help="Draw N samples of every set; default: all")
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Selects which samples are drawn")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of the engines; default: all cores")
]
KvCacheTypes = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        metavar="TYPE",
        help="Type of the KV cache in llama.cpp: f16 (default), q8_0, q4_0 or others; or KEYS/VALUES, e.g. q8_0/q4_0",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device for calibration: cpu, cuda, cuda:1; default: a GPU if any, for checkpoints from 500 MB on",
        autocompletion=complete_device,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device for calibration: cpu, cuda, cuda:1; several GPUs share the samples: cuda:0,cuda:1 or cuda:all;"
        " default: a GPU if any, for checkpoints from 500 MB on",
        autocompletion=complete_device,
    ),
]
OriginalDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device for the original in PyTorch: cpu, cuda, cuda:1; default: cpu",
        callback=require_one_device,
        autocompletion=complete_device,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]
Answers = Annotated[
    bool, typer.Option("--answers/--no-answers", help="Generate answers to the worst samples for the report")
]
All = Annotated[bool, typer.Option("--all", help="Print all rows of a report")]
KeepQuantized = Annotated[
    bool, typer.Option("--keep-quantized", help="Also write the quantized model if one format needs it only once")
]
Context = Annotated[int, typer.Option("--context", metavar="TOKENS", min=1, help="Context length on the device")]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="Maximum total size of one artifact, e.g. 4.6GB")
]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Maximum memory on the device with a full context, e.g. 6GB"),
]
AddedImatrix = Annotated[
    list[Path] | None,
    typer.Option("--add", metavar="DIR", help="Add the imatrix of another set; may be repeated"),
]
Mmproj = Annotated[
    Path | None, typer.Option("--mmproj", metavar="FILE", help="GGUF file whose padded matrix shapes to match")
]
Scores = Annotated[
    Path | None, typer.Option("--scores", metavar="FILE", help="Task scores of original and artifacts, as JSON")
]
Npu = Annotated[
    Path | None,
    typer.Option("--npu", metavar="SET", help="ONNX vision graph for NPUs: 16-bit activations over these images"),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        metavar="SIZE",
        help="Maximum memory of the quantization, e.g. 4GB: hidden states that exceed it go to a temporary file",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="Name of a recipe (see `mcpmq recipes`), or a TOML file",
        autocompletion=complete_recipe,
    ),
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="4|8", help="Short for the recommended recipe of each format")
]
Formats = Annotated[
    list[str],
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help=f"Format: {FORMAT_NAMES}; may be repeated",
        autocompletion=complete_format,
    ),
]
OnePassFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="Write this format in one pass instead of a quantized model, if the recipe needs no calibration",
        autocompletion=complete_format,
    ),
]
ForecastFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help=f"Format to forecast: {FORMAT_NAMES}; may be repeated",
        autocompletion=complete_format,
    ),
]
Calibration = Annotated[Path, typer.Option("--calibration", metavar="SET", help="Calibration set: images and prompts")]
OptionalCalibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration", metavar="SET", help="Calibration set: images and prompts; optional if the recipe needs none"
    ),
]
PlanCalibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="SET",
        help="Calibration set, for the time and for a trimmed vocabulary",
    ),
]
TrimVocabulary = Annotated[
    list[str] | None,
    typer.Option(
        "--trim-vocabulary",
        metavar="KEPT",
        help="Keep the tokens of languages (en,zh), scripts (Han), texts (calibration or FILE.txt), or at most a number"
        " (65536); may be repeated",
    ),
]
MaxSlices = Annotated[
    int | None,
    typer.Option("--max-slices", metavar="N", min=1, max=64, help="Maximum slices of an image, or tiles; default: all"),
]
MaxPixels = Annotated[
    int | None,
    typer.Option("--max-pixels", metavar="N", min=1, help="Maximum pixels of a resized image (Qwen-VL)"),
]
DropSpeechOutput = Annotated[
    bool, typer.Option("--drop-speech-output", help="Leave out the weights that synthesize speech")
]
GgufAudioProjector = Annotated[
    str | None,
    typer.Option(
        "--gguf-audio",
        metavar="glma",
        help="Write the audio encoder of MiniCPM-o into GGUF, with other padding and attention than the original",
    ),
]
OnnxSharedEmbedding = Annotated[
    bool,
    typer.Option("--onnx-shared-embedding", help="Store a tied embedding once in ONNX; transformers.js needs it twice"),
]
EvalSet = Annotated[
    Path | None,
    typer.Option("--eval-set", metavar="SET", help="Evaluation set; default: a fifth of the calibration set"),
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Calibrate on a Ray cluster: HOST:PORT, auto, or local for one here"),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Processes with samples on Ray; default: one on every node"),
]
WorkerThreads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads of a worker on Ray")]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse the cached measurement of the same original")]
