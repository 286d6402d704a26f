"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

STEPS, LOOK = "Step by step", "Look and judge"

Source = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder of a Hugging Face checkpoint, or a hub id")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not hold anything else")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Of the engines; default: all cores")
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="To calibrate on: cpu, cuda, cuda:1; default: a GPU if any"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]
Context = Annotated[int, typer.Option("--context", metavar="TOKENS", min=1, help="Tokens that the device is to hold")]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="Of the files of one artifact: 4.6GB, 512MiB")
]
FitMemory = Annotated[
    str | None, typer.Option("--fit-memory", metavar="SIZE", help="Of the device, with a full context: 6GB")
]
FORMAT_NAMES = "gguf, onnx, gptq, awq, bnb or compressed-tensors"

RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="A recipe, or its TOML file")
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="4|8", help="Short for the recipe calibrated-int4 or phone-int8")
]
Formats = Annotated[
    list[str], typer.Option("--format", "-f", metavar="FORMAT", help=f"What to write: {FORMAT_NAMES}; may be repeated")
]
Forecasts = Annotated[
    list[str] | None, typer.Option("--format", "-f", metavar="FORMAT", help=f"Forecast {FORMAT_NAMES}; may be repeated")
]
Calibration = Annotated[Path, typer.Option("--calibration", metavar="DIR", help="Images and questions to calibrate on")]
OptionalCalibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="Images and questions to calibrate on")
]
On = Annotated[
    Path | None,
    typer.Option("--on", metavar="DIR", help="Set to measure on; without it a fifth of the calibration set"),
]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse a measurement of the same original")]
