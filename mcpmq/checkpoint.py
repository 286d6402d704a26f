"""The model as it was given: a Hugging Face directory, read lazily and never written."""

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
from mcpmq.system.safetensors_file import Entry, read_bytes, read_header

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
# What is fetched from a hub: weights and texts, never pickle. Code is a text that goes along with artifacts, unread.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
CODE_PATTERN = "*.py"
LEGAL_PATTERNS = ["README.md", "LICEN[CS]E*", "NOTICE*"]  # what says under which terms the model may be passed on


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for reading. Every tensor is known from the headers; none is loaded."""

    path: Path
    config: Mapping[str, Any]
    family: Family
    architecture: Architecture
    specs: tuple[TensorSpec, ...]
    entries: Mapping[str, Entry]  # by common name

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Open a folder, or a hub id such as `openbmb/MiniCPM-V-2_6`, and check it whole.

        Raises:
            CheckpointError: it is no checkpoint, of no supported family, or its files do not agree.
        """
        path = _resolve(source)
        config = read_json(path / "config.json")
        family = _family(config)
        architecture = family.architecture(config)
        entries = _entries(path)
        specs = (*family.tensors(architecture), *_passed_through(family, entries))
        return cls(path, config, family, architecture, specs, _match(specs, entries))

    def load(self, spec: TensorSpec) -> "Tensor":
        """One tensor in its own dtype; a transposed one is turned to [out, in]."""
        tensor = self.load_stored(spec)
        return tensor.T.contiguous() if spec.transposed else tensor

    def load_stored(self, spec: TensorSpec) -> "Tensor":
        """One tensor exactly as the file holds it."""
        entry = self.entries[spec.name]
        return _tensor(read_bytes(entry), entry).reshape(entry.shape)

    def load_rows(self, spec: TensorSpec, weights_at_a_time: int) -> Iterator["Tensor"]:
        """A matrix or table [out, in], some whole rows at a time; a transposed one, which is small, at once."""
        entry = self.entries[spec.name]
        if spec.transposed:
            yield self.load(spec)
            return
        row_nbytes = entry.nbytes // entry.shape[0]
        step = max(1, weights_at_a_time // entry.shape[1]) * row_nbytes
        for begin in range(0, entry.nbytes, step):
            rows = read_bytes(entry, begin, min(begin + step, entry.nbytes))
            yield _tensor(rows, entry).reshape(-1, entry.shape[1])

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def code(self) -> list[Path]:
        """Files of code that others run when config.json asks for it; none where it does not. mcpmq never does."""
        return sorted(self.path.glob(CODE_PATTERN)) if "auto_map" in self.config else []

    @property
    def texts(self) -> list[Path]:
        """Configuration, tokenizer and processor files, sorted."""
        found = {file for pattern in HUB_PATTERNS[1:] for file in self.path.glob(pattern)}
        return sorted(file for file in found if not file.name.endswith(".index.json"))

    @property
    def legal_texts(self) -> list[Path]:
        """The model card, licences and notices, sorted."""
        return sorted({file for pattern in LEGAL_PATTERNS for file in self.path.glob(pattern)})

    @cached_property
    def sha256(self) -> str:
        """Hash of the configuration and of every weight file, in the order of their names."""
        digest = hashlib.sha256()
        for file in [self.path / "config.json", *sorted({entry.file for entry in self.entries.values()})]:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What it is, in words and numbers."""
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
            "vision": str(self.architecture.vision or "none: it reads text only"),
        }


def _tensor(values: bytearray, entry: Entry) -> "Tensor":
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
        return Path(snapshot_download(hub_id, allow_patterns=[*HUB_PATTERNS, CODE_PATTERN, *LEGAL_PATTERNS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"`{hub_id}` is no folder here and could not be fetched from the hub: {reason}",
            "download the checkpoint where there is a network, and give the path of its folder",
        ) from error


def _family(config: Mapping[str, Any]) -> Family:
    try:
        return family_of(config)
    except CheckpointError as error:
        if "auto_map" not in config:
            raise
        hint = f"its config.json asks to run code that comes with it, which mcpmq never does; {error.hint}"
        raise CheckpointError(str(error), hint) from error


def _entries(path: Path) -> dict[str, Entry]:
    if (path / INDEX).is_file():
        return _indexed_entries(path, read_json(path / INDEX))
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"`{path}` holds pickled weights (`{pickles[0]}`), which can run code when opened",
                "convert them to safetensors where you trust them, then point here again",
            )
        raise CheckpointError(f"no `.safetensors` file in `{path}`")
    return {name: entry for shard in shards for name, entry in read_header(shard).items()}


def _indexed_entries(path: Path, index: Mapping[str, Any]) -> dict[str, Entry]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"`{path / INDEX}` has no `weight_map` from tensor to file")
    entries: dict[str, Entry] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (path / file).is_file():
            raise CheckpointError(f"`{INDEX}` names `{file}`, which is not in `{path}`", "fetch the missing shard")
        entries |= read_header(path / file)
    if missing := sorted(weight_map.keys() - entries.keys()):
        raise CheckpointError(f"`{weight_map[missing[0]]}` does not hold `{missing[0]}`, which `{INDEX}` places there")
    return entries


def _passed_through(family: Family, entries: Mapping[str, Entry]) -> Iterator[TensorSpec]:
    """Tensors of components that the family does not know, and hands on as they are."""
    for component, beginning in family.passed_through:
        for name in sorted(entries):
            if name.startswith(f"{beginning}."):
                yield TensorSpec(f"{component}.{name}", name, entries[name].shape)


def _match(specs: tuple[TensorSpec, ...], entries: dict[str, Entry]) -> dict[str, Entry]:
    known = {spec.hub_name for spec in specs}
    if missing := [spec.hub_name for spec in specs if spec.hub_name not in entries]:
        raise CheckpointError(f"{len(missing)} tensors are missing, first `{missing[0]}`", "fetch every shard")
    if unknown := sorted(entries.keys() - known):
        raise CheckpointError(f"{len(unknown)} tensors are unknown to the family, first `{unknown[0]}`")
    for spec in specs:
        if entries[spec.hub_name].shape != spec.shape:
            raise CheckpointError(
                f"`{spec.hub_name}` has shape {list(entries[spec.hub_name].shape)},"
                f" config.json asks for {list(spec.shape)}",
                "the weights and the configuration belong to different models",
            )
    return {spec.name: entries[spec.hub_name] for spec in specs}
