"""The end of a command: the paths of its outputs, and the commands that use them, on stderr."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.ui.terminal import print_notice

if TYPE_CHECKING:  # --help and errors import no library
    from mcpmq.artifact import Artifact
    from mcpmq.report import Report

SIZE_LIMIT = "--max-size"


def print_report_paths(folder: Path) -> None:
    """Print the path of the page of a report, and the command that checks it against a gate."""
    print_notice(f"report: {folder / 'report.html'}")
    print_notice(f"check in continuous integration: {_command('check', folder, '--gate', 'gate.toml')}")


def print_run_command(artifact: Path, *, has_vision: bool) -> None:
    """Print the command that answers a prompt with an artifact."""
    image = ("--image", "FILE") if has_vision else ()
    print_notice(f"try it: {_command('run', artifact, *image, 'PROMPT')}")


def print_conversion_steps(
    report: "Report", out: Path, source: list[str], calibration: list[str], *, can_search: bool
) -> None:
    """Print the outputs of a conversion, its report, and `search` if it is known to have better recipes.

    `source` are the words that name the checkpoint and its adapters, `calibration` the options of the calibration set.
    `can_search` is false for a checkpoint that `search` refuses.
    """
    names = [result.name for result in report.artifacts]
    print_notice(f"written: {', '.join(str(out / name) for name in names) or out}")
    if names:
        has_vision = any(group != "text" for group in report.original.groups)
        print_run_command(out / names[0], has_vision=has_vision)
    for result in report.artifacts if can_search else ():
        _print_search(result.recipe, result.kind, result.measurement.nbytes, source, calibration)
    print_report_paths(out)


def _print_search(recipe: str, kind: str, nbytes: int, source: list[str], calibration: list[str]) -> None:
    from mcpmq.formats.recipes import Measurements

    measured = Measurements.load()
    if not (better := measured.better_search(recipe, kind)):
        return
    fixed, searched = (one.mean_kld["image"][0] for one in better)
    options = ("--format", kind, SIZE_LIMIT, str(nbytes), *calibration)
    print_notice(
        f"more accurate at this size: {_command('search', *source, 'recipe.toml', *options)}"
        f" (mean KLD on {measured.checkpoint}: {searched:.4f} instead of {fixed:.4f} nats)"
    )


def print_quantized_steps(artifact: "Artifact") -> None:
    """Print the command that exports a quantized model."""
    out = artifact.path.with_name(f"{artifact.path.name}-gguf")
    print_notice(f"next: {_command('export', artifact.path, out, '--format', 'gguf')}")


def print_exported_steps(artifact: "Artifact") -> None:
    """Print the commands that run and measure an exported artifact."""
    print_run_command(artifact.path, has_vision=artifact.has_vision)
    adapters = ("--lora", "DIR") * len(artifact.manifest.source.adapters)
    options = ("--against", "CHECKPOINT", *adapters, "--eval-set", "DIR")
    print_notice(f"measure it: {_command('evaluate', artifact.path, *options)}")


def print_imatrix_steps(artifact: "Artifact") -> None:
    """Print the command of llama.cpp that uses an importance matrix."""
    for record in artifact.manifest.files:
        if record.path.endswith(".gguf"):
            file = shlex.quote(str(artifact.path / record.path))
            print_notice(f"next: llama-quantize --imatrix {file} IN.gguf OUT.gguf q4_k_m")


def print_search_steps(recipe: Path, source: list[str], kind: str, calibration: list[str]) -> None:
    """Print the path of a searched recipe, and the command that measures it."""
    options = ("--recipe", recipe, "--format", kind, *calibration)
    print_notice(f"written: {recipe}")
    print_notice(f"measure it: {_command('convert', *source, 'OUT', *options)}")


def print_release_steps(release: Path, *, has_vision: bool) -> None:
    """Print the path of a release, and the commands that run it and verify a copy of it."""
    print_notice(f"written: {release}")
    print_run_command(release, has_vision=has_vision)
    print_notice(f"verify a copy: {_command('verify', release)}")


def print_push_steps(release: Path, repository: str, *, dry_run: bool) -> None:
    """Print the command that pushes after a dry run, or those that download and verify a copy."""
    if dry_run:
        print_notice(f"nothing was sent; push: {_command('push', release, repository)}")
    else:
        print_notice(f"download: hf download {shlex.quote(repository)} --local-dir COPY")
        print_notice(f"verify a copy: {_command('verify', 'COPY')}")


def print_written_files(files: Sequence[Path | None]) -> None:
    """Print the paths of the files that a command wrote on request."""
    if written := [str(file) for file in files if file]:
        print_notice(f"written: {', '.join(written)}")


def _command(*words: object) -> str:
    return f"mcpmq {shlex.join(map(str, words))}"
