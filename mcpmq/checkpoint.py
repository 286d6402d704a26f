"""Checkpoints: Hugging Face directories, read one tensor at a time and never written."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import TensorEntry, read_bytes, read_header

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
# Files that are downloaded from a hub: weights and texts, never pickle. Code is copied to artifacts and never run.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
CODE_PATTERN = "*.py"
LICENSE_PATTERNS = ["README.md", "LICEN[CS]E*", "NOTICE*"]  # terms of use of the model


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for reading; tensors are listed from the headers, and none is loaded."""

    path: Path
    config: Mapping[str, Any]
    family: Family
    architecture: Architecture
    specs: tuple[TensorSpec, ...]
    entries: Mapping[str, TensorEntry]  # by common name

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Open a folder, or a hub id such as `openbmb/MiniCPM-V-2_6`, and check all headers.

        Raises:
            CheckpointError: files are missing or inconsistent, or the family is not supported.
        """
        path = _resolve(source)
        config = read_json(path / "config.json")
        family = _family(config)
        architecture = family.parse_architecture(config)
        entries = _entries(path)
        specs = (*family.tensor_specs(architecture), *_passthrough_specs(family, entries))
        return cls(path, config, family, architecture, specs, _match(specs, entries))

    def load(self, spec: TensorSpec) -> "Tensor":
        """Return a tensor in its stored dtype; a matrix stored as [in, out] is transposed to [out, in]."""
        tensor = self.load_stored(spec)
        return tensor.T.contiguous() if spec.transposed else tensor

    def load_stored(self, spec: TensorSpec) -> "Tensor":
        """Return a tensor with the dtype and shape of the file."""
        entry = self.entries[spec.name]
        return _tensor(read_bytes(entry), entry).reshape(entry.shape)

    def load_rows(self, spec: TensorSpec, max_weights: int) -> Iterator["Tensor"]:
        """Yield a matrix or table [out, in] in chunks of rows; a (small) matrix stored as [in, out] in one chunk."""
        entry = self.entries[spec.name]
        if spec.transposed:
            yield self.load(spec)
            return
        row_nbytes = entry.nbytes // entry.shape[0]
        step = max(1, max_weights // entry.shape[1]) * row_nbytes
        for begin in range(0, entry.nbytes, step):
            rows = read_bytes(entry, begin, min(begin + step, entry.nbytes))
            yield _tensor(rows, entry).reshape(-1, entry.shape[1])

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def code_files(self) -> list[Path]:
        """Return the Python files if config.json refers to them; mcpmq copies them and never runs them."""
        return sorted(self.path.glob(CODE_PATTERN)) if "auto_map" in self.config else []

    @property
    def text_files(self) -> list[Path]:
        """Return the configuration, tokenizer and processor files, sorted."""
        found = {file for pattern in HUB_PATTERNS[1:] for file in self.path.glob(pattern)}
        return sorted(file for file in found if not file.name.endswith(".index.json"))

    @property
    def license_files(self) -> list[Path]:
        """Return the model card, license and notice files, sorted."""
        return sorted({file for pattern in LICENSE_PATTERNS for file in self.path.glob(pattern)})

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the configuration and all weight files, in the order of their names."""
        digest = hashlib.sha256()
        for file in [self.path / "config.json", *sorted({entry.file for entry in self.entries.values()})]:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return family, dtypes and sizes as plain values."""
        sizes: Counter[str] = Counter()
        for spec in self.specs:
            sizes[spec.component] += self.entries[spec.name].nbytes
        return {
            "family": self.family.name,
            "tensors": len(self.specs),
            "dtypes": dict(Counter(entry.torch_dtype for entry in self.entries.values())),
            "bytes": self.nbytes,
            "bytes_by_component": dict(sizes),
            "language": str(self.architecture.language),
            "vision": str(self.architecture.vision or "none (text only)"),
        }


def _tensor(values: bytearray, entry: TensorEntry) -> "Tensor":
    import torch

    return torch.frombuffer(values, dtype=getattr(torch, entry.torch_dtype))


def _resolve(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"`{path}` is a file", "point at the folder that holds `config.json`")
    if isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/")):
        return _download(source)
    raise CheckpointError(f"`{path}` does not exist", "point at a Hugging Face checkpoint folder")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*HUB_PATTERNS, CODE_PATTERN, *LICENSE_PATTERNS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"`{hub_id}` is not a local folder and cannot be downloaded from the hub: {reason}",
            "download the checkpoint on a machine with network access, and give the path of its folder",
        ) from error


def _family(config: Mapping[str, Any]) -> Family:
    try:
        return family_of(config)
    except CheckpointError as error:
        if "auto_map" not in config:
            raise
        hint = f"mcpmq never runs the code that config.json refers to; {error.hint}"
        raise CheckpointError(str(error), hint) from error


def _entries(path: Path) -> dict[str, TensorEntry]:
    if (path / INDEX).is_file():
        return _indexed_entries(path, read_json(path / INDEX))
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"`{path}` holds pickled weights (`{pickles[0]}`), which can run code when opened",
                "convert them to safetensors in an environment where you trust them",
            )
        raise CheckpointError(f"no `.safetensors` file in `{path}`")
    return {name: entry for shard in shards for name, entry in read_header(shard).items()}


def _indexed_entries(path: Path, index: Mapping[str, Any]) -> dict[str, TensorEntry]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"`{path / INDEX}` has no `weight_map` from tensor to file")
    entries: dict[str, TensorEntry] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (path / file).is_file():
            raise CheckpointError(f"`{INDEX}` names `{file}`, which is not in `{path}`", "fetch the missing shard")
        entries |= read_header(path / file)
    if missing := sorted(weight_map.keys() - entries.keys()):
        raise CheckpointError(f"`{weight_map[missing[0]]}` has no `{missing[0]}`, which `{INDEX}` lists there")
    return entries


def _passthrough_specs(family: Family, entries: Mapping[str, TensorEntry]) -> Iterator[TensorSpec]:
    """Yield the tensors of components that pass through unchanged."""
    for component, prefix in family.passthrough:
        for name in sorted(entries):
            if name.startswith(f"{prefix}."):
                yield TensorSpec(f"{component}.{name}", name, entries[name].shape)


def _match(specs: tuple[TensorSpec, ...], entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    known = {spec.hub_name for spec in specs}
    if missing := [spec.hub_name for spec in specs if spec.hub_name not in entries]:
        raise CheckpointError(f"{len(missing)} tensors are missing, first `{missing[0]}`", "fetch every shard")
    if unknown := sorted(entries.keys() - known):
        raise CheckpointError(f"{len(unknown)} tensors are unknown to the family, first `{unknown[0]}`")
    for spec in specs:
        if entries[spec.hub_name].shape != spec.shape:
            raise CheckpointError(
                f"`{spec.hub_name}` has shape {list(entries[spec.hub_name].shape)},"
                f" config.json requires {list(spec.shape)}",
                "the weights and the configuration belong to different models",
            )
    return {spec.name: entries[spec.hub_name] for spec in specs}
