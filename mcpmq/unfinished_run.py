"""The folder of an unfinished quantization: its request, its finished blocks, and their hashes."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from mcpmq.artifact import FileRecord, Manifest
from mcpmq.errors import OutputError
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import BLOCKS_DIRECTORY, CalibrationResult, write_block
from mcpmq.system.durable_file import write_durably
from mcpmq.system.file_hash import file_sha256

REQUEST_FILE = "request.json"  # exists until the folder has its final name


class RunRequest(BaseModel):
    """Everything that decides the bytes of a quantized model; only an equal request resumes a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Manifest  # without results and files
    copied_files: dict[str, str]  # SHA-256 by name; tokenizer and preprocessor decide the calibration inputs

    def differences(self, earlier: "RunRequest") -> list[str]:
        """Return descriptions of the differences from an earlier request; another recipe explains the others."""
        now, before = self.manifest, earlier.manifest
        if now.recipe != before.recipe:
            return [f"recipe (`{before.recipe.get('name')}`, not `{now.recipe.get('name')}`)"]
        if now.vocabulary != before.vocabulary:
            return [f"vocabulary{_both(*(str(one.vocabulary or 'all tokens') for one in (before, now)))}"]
        if now.layers != before.layers:
            return [f"layers{_both(*(str(one.layers or 'all of the original') for one in (before, now)))}"]
        if now.images != before.images:
            return [f"image limits{_both(*(str(one.images or 'those of the original') for one in (before, now)))}"]
        pairs = {
            "checkpoint": ((before.source, earlier.copied_files), (now.source, self.copied_files)),
            "calibration set": (before.calibration_set, now.calibration_set),
            "device": (before.device or "CPU", now.device or "CPU"),
            "instruction set": (before.instruction_set, now.instruction_set),
            "version": (_join(before.versions), _join(now.versions)),
        }
        differing = {name: values for name, values in pairs.items() if values[0] != values[1]}
        return [f"{name}{_both(*values)}" for name, values in differing.items()] or ["plan"]


def _join(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _both(before: object, now: object) -> str:
    return f" ({before}, not {now})" if isinstance(before, str) and isinstance(now, str) else ""


class _RunRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    request: RunRequest
    blocks: dict[str, str]  # SHA-256 of the finished block files, by block


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A run that writes one file per block into a folder; the caller holds the lock of the output."""

    folder: Path
    request: RunRequest
    blocks: dict[str, str]  # SHA-256 of the finished block files, by block

    @classmethod
    def resume(cls, folder: Path, request: RunRequest) -> Self:
        """Resume the run in a folder, or start it; files whose hash is not the recorded one are removed.

        Raises:
            OutputError: the run in the folder has another request.
        """
        record = _read_record(folder / REQUEST_FILE)
        if record and record.request != request:
            raise OutputError(
                f"`{folder}` has an unfinished run of another {', '.join(request.differences(record.request))}",
                "delete it to start over, or run again with the original arguments, on the original machine, to resume",
            )
        run = cls(folder, request, dict(record.blocks) if record else {})
        run._remove_unverified_files()
        run._write_record()
        return run

    def block_file(self, block: str) -> Path:
        """Return the path of the file of a block."""
        return self.folder / BLOCKS_DIRECTORY / f"{block}.safetensors"

    def write_block(
        self, file: Path, weights: Mapping[str, QTensor | Tensor], result: CalibrationResult | None = None
    ) -> None:
        """Write the file of one block, and record its hash."""
        write_block(file, weights, result)
        self.blocks[file.stem] = file_sha256(file)
        self._write_record()

    def check_blocks(self, records: tuple[FileRecord, ...]) -> None:
        """Check that the hashes of block files in a manifest are those of the run.

        Raises:
            OutputError: a file has changed since it was written.
        """
        hashes = {record.path: record.sha256 for record in records}
        for block, sha256 in self.blocks.items():
            file = self.block_file(block)
            if hashes[str(file.relative_to(self.folder))] != sha256:
                raise OutputError(f"`{file}` changed after it was written", "run again: the block is quantized again")

    def _remove_unverified_files(self) -> None:
        blocks = self.folder / BLOCKS_DIRECTORY
        kept = {self.folder / REQUEST_FILE}
        if blocks.is_dir() and not blocks.is_symlink():
            kept |= {blocks, *(file for file in map(self.block_file, self.blocks) if self._is_verified(file))}
            _remove_except(blocks, kept)
        _remove_except(self.folder, kept)
        blocks.mkdir(exist_ok=True)
        for block in [block for block in self.blocks if self.block_file(block) not in kept]:
            del self.blocks[block]

    def _is_verified(self, file: Path) -> bool:
        is_file = file.is_file() and not file.is_symlink()
        return is_file and file_sha256(file) == self.blocks[file.stem]

    def _write_record(self) -> None:
        record = _RunRecord(request=self.request, blocks=self.blocks)
        write_durably(self.folder / REQUEST_FILE, record.model_dump_json())


def _read_record(file: Path) -> _RunRecord | None:
    """Read the record of a run; None if it is missing or damaged, so that the run starts over."""
    try:
        return _RunRecord.model_validate_json(file.read_bytes()) if file.is_file() else None
    except ValidationError:
        return None


def _remove_except(folder: Path, kept: set[Path]) -> None:
    for path in folder.iterdir():
        if path in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
