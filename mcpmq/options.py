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
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]
Context = Annotated[int, typer.Option("--context", metavar="TOKENS", min=1, help="Tokens that the device is to hold")]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="Of the files of one artifact: 4.6GB, 512MiB")
]
FitMemory = Annotated[
    str | None, typer.Option("--fit-memory", metavar="SIZE", help="Of the device, with a full context: 6GB")
]
