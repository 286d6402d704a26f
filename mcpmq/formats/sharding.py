"""Copies of an artifact's files, those that are too large in parts that its engine loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.errors import ReleaseError
from mcpmq.system.ggml_library import PINNED_VERSION
from mcpmq.system.json_file import read_json

LEAST_RUNTIMES = {  # the oldest version that loads it, or that it was tried with
    "gguf": f"llama.cpp b{PINNED_VERSION.rpartition('.')[2]}",
    "onnx": "ONNX Runtime 1.24",
    "gptq": "transformers 5.23 with optimum and gptqmodel",
    "awq": "transformers 5.23 with gptqmodel",
    "bnb": "transformers 5.23 with bitsandbytes and accelerate",
    "compressed-tensors": "transformers 5.23 with compressed-tensors and accelerate",
}
SESSION_SETTINGS = "transformers.js_config"


def divide(artifact: Artifact, out: Path, largest_nbytes: int | None) -> dict[str, list[str]]:
    """Copy an artifact's files into the empty folder `out`; component -> paths.

    Raises:
        ReleaseError: a file that must stay whole, or one weight, is larger than a part.
    """
    large = [one for one in artifact.manifest.files if largest_nbytes is not None and one.nbytes > largest_nbytes]
    if not large or largest_nbytes is None:
        return _copied(artifact, out)
    if artifact.manifest.kind not in DIVIDERS:
        raise ReleaseError(
            f"`{large[0].path}` has {large[0].nbytes:,} bytes, more than the {largest_nbytes:,} of a part",
            f"its shards have at most 5 GB as they are; what can be divided is: {', '.join(DIVIDERS)}",
        )
    return DIVIDERS[artifact.manifest.kind](artifact, out, largest_nbytes)


def _copied(artifact: Artifact, out: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for record in artifact.manifest.files:
        (out / record.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / record.path, out / record.path)
        files.setdefault(record.component, []).append(record.path)
    return files


def _divided_gguf(artifact: Artifact, out: Path, largest_nbytes: int) -> dict[str, list[str]]:
    """Only what reads and writes: llama.cpp does not look for parts of what sees."""
    from mcpmq.formats.gguf.splitting import split

    files: dict[str, list[str]] = {}
    for record in artifact.manifest.files:
        file = artifact.path / record.path
        if record.nbytes <= largest_nbytes:
            shutil.copyfile(file, out / record.path)
            files.setdefault(record.component, []).append(record.path)
        elif record.component != "language":
            raise ReleaseError(
                f"`{record.path}` has {record.nbytes:,} bytes, and llama.cpp loads it only whole",
                f"allow parts of {record.nbytes:,} bytes, or give `vision.*` fewer bits",
            )
        else:
            files.setdefault(record.component, []).extend(split(file, out, largest_nbytes))
    return files


def _divided_onnx(artifact: Artifact, out: Path, largest_nbytes: int) -> dict[str, list[str]]:
    """Every graph with its weights in chunks; config.json says how many."""
    from mcpmq.formats.onnx.layout import FOLDER
    from mcpmq.formats.onnx.splitting import split

    (out / FOLDER).mkdir()
    files: dict[str, list[str]] = {}
    counts = {}
    for record in artifact.manifest.files:
        if record.component == "model":
            shutil.copyfile(artifact.path / record.path, out / record.path)
            files.setdefault("model", []).append(record.path)
        elif record.path.endswith(".onnx"):
            chunks = split(artifact.path / record.path, out / FOLDER, largest_nbytes)
            names = [record.path, *(f"{FOLDER}/{chunk}" for chunk in chunks)]
            files.setdefault(record.component, []).extend(names)
            counts[Path(record.path).name] = len(chunks)
    config = read_json(out / "config.json")
    settings = {**config[SESSION_SETTINGS], "use_external_data_format": counts}
    text = json.dumps({**config, SESSION_SETTINGS: settings}, indent=2, ensure_ascii=False)
    (out / "config.json").write_text(text + "\n")
    return files


DIVIDERS: dict[str, Callable[[Artifact, Path, int], dict[str, list[str]]]] = {
    "gguf": _divided_gguf,
    "onnx": _divided_onnx,
}
