"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

PIPELINE_PANEL, INSPECT_PANEL = "Pipeline steps", "Inspect and verify"
FORMAT_NAMES = "gguf, onnx, gptq, awq, bnb or compressed-tensors"
DEFAULT_SEARCH_RECIPE = "calibrated-int4"

Source = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a Hugging Face checkpoint, or a hub id")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be empty or missing")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of the engines; default: all cores")
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Device for calibration: cpu, cuda, cuda:1; default: a GPU if any"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]
All = Annotated[bool, typer.Option("--all", help="Print all rows of a report")]
Context = Annotated[int, typer.Option("--context", metavar="TOKENS", min=1, help="Context length on the device")]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="Maximum total size of one artifact, e.g. 4.6GB")
]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Maximum memory on the device with a full context, e.g. 6GB"),
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="Name of a recipe, or a TOML file")
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="4|8", help="Short for the recipe calibrated-int4 or phone-int8")
]
Formats = Annotated[
    list[str], typer.Option("--format", "-f", metavar="FORMAT", help=f"Format: {FORMAT_NAMES}; may be repeated")
]
ForecastFormats = Annotated[
    list[str] | None,
    typer.Option("--format", "-f", metavar="FORMAT", help=f"Format to forecast: {FORMAT_NAMES}; may be repeated"),
]
Calibration = Annotated[Path, typer.Option("--calibration", metavar="DIR", help="Calibration set: images and prompts")]
OptionalCalibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="Calibration set: images and prompts")
]
EvalSet = Annotated[
    Path | None,
    typer.Option("--eval-set", metavar="DIR", help="Evaluation set; default: a fifth of the calibration set"),
]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse the cached measurement of the same original")]
