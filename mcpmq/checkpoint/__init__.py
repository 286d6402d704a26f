"""Checkpoints: Hugging Face directories, read one tensor at a time and never written."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mcpmq.checkpoint.adapter import Adapter, merged_name
from mcpmq.checkpoint.expert_stacks import unstack_experts
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.checkpoint.source import (
    CODE_PATTERN,
    LICENSE_PATTERNS,
    TEMPLATE_PATTERN,
    TEXT_PATTERNS,
    WEIGHT_PATTERN,
    find_source,
)
from mcpmq.checkpoint.tensor_names import check_dtypes, match_tensors, passthrough_specs, untie_head, unwrap_names
from mcpmq.checkpoint.text_files import TextFile, text_file
from mcpmq.checkpoint.weight_files import (
    INDEX,
    check_declared_dtypes,
    check_not_adapter,
    check_not_quantized,
    read_entries,
)
from mcpmq.compression_tables import ImagesTable, LayersTable
from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.family import Architecture, Family, TensorSpec
from mcpmq.system.file_hash import file_sha256
from mcpmq.system.hub_cache import folder_name, snapshot_commit
from mcpmq.system.input_file import check_file, check_files
from mcpmq.system.json_file import read_json
from mcpmq.system.progress import Progress, silent
from mcpmq.system.safetensors_file import FLOAT_DTYPES, PACKED_DTYPES, TensorEntry, read_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["CODE_PATTERN", "INDEX", "LICENSE_PATTERNS", "TEXT_PATTERNS", "WEIGHT_PATTERN", "Checkpoint"]
CONFIG = "config.json"
TOKEN_TABLES = ("embedding", "head")  # weights with one row for each token
MAX_TEXT_NBYTES = 256 << 20
CHUNK_WEIGHTS = 1 << 24  # weights that are converted to float32 at a time
MAX_HASHED_FILES = 4  # at a time


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for reading; tensors are listed from the headers, and none is loaded."""

    path: Path
    config: Mapping[str, Any]
    family: Family
    architecture: Architecture
    specs: tuple[TensorSpec, ...]
    entries: Mapping[str, TensorEntry]  # by common name
    adapters: tuple[Adapter, ...] = ()  # merged in this order into every tensor that is loaded
    vocabulary: KeptVocabulary | None = None  # of a checkpoint whose vocabulary is trimmed
    layers: LayersTable | None = None  # that are removed
    images: ImagesTable | None = None  # limits of images that are not those of the checkpoint on disk
    view_of: Self | None = None  # the checkpoint that it is a view of

    @classmethod
    def open(cls, source: str | Path, progress: Progress = silent, adapters: Sequence[str | Path] = ()) -> Self:
        """Open a folder, or a hub id such as `openbmb/MiniCPM-V-2_6`, and check all headers.

        A hub id may have a revision, `owner/name@revision`: a branch, a tag or a commit. An existing folder of the same
        name is preferred. `adapters` are folders of LoRA adapters that PEFT saved.

        Raises:
            CheckpointError: files are missing or inconsistent, the family is not supported, a download fails, or an
                adapter cannot be merged.
        """
        opened = cls._open(source, progress)
        return replace(opened, adapters=tuple(Adapter.open(folder, opened.specs) for folder in adapters))

    @classmethod
    def _open(cls, source: str | Path, progress: Progress) -> Self:
        found = find_source(source)
        path = found.path
        _check_files(path)
        check_not_adapter(path)
        config: Mapping[str, Any] = read_json(path / CONFIG)
        check_not_quantized(path, config)
        check_declared_dtypes(config)
        family = _family(config)
        found.download_weights(config, progress)
        _check_files(path)
        stored = unwrap_names(read_entries(path, config))
        opened = cls._match(path, config, family, stored)
        if opened is None:  # the head is declared tied, and another one is stored
            opened = cls._match(path, untie_head(config), family, stored)
        assert opened is not None
        return opened

    @classmethod
    def _match(
        cls, path: Path, config: Mapping[str, Any], family: Family, stored: Mapping[str, TensorEntry]
    ) -> Self | None:
        """Match the tensors with the configuration; None if a head of its own is stored that the configuration ties."""
        architecture = family.parse_architecture(config)
        computed, copied = family.tensor_specs(architecture), tuple(passthrough_specs(family, stored))
        stored = unstack_experts(stored, architecture.language, copied)
        matched = match_tensors((*computed, *copied), stored)
        check_dtypes(computed, matched.entries, FLOAT_DTYPES)
        check_dtypes(copied, matched.entries, FLOAT_DTYPES | PACKED_DTYPES.keys())
        if matched.own_head:
            return None
        return cls(path, config, family, architecture, (*computed, *copied), matched.entries)

    def with_vocabulary(self, vocabulary: KeptVocabulary, path: Path, config: Mapping[str, Any]) -> Self:
        """Return a view with some rows of embedding and head; `path` has its text files, `config` its configuration."""
        rows = vocabulary.ids
        tables = {name: self.entries[name].select_rows(rows) for name in TOKEN_TABLES if name in self.entries}
        specs = tuple(
            replace(one, shape=(len(rows), *one.shape[1:])) if one.name in tables else one for one in self.specs
        )
        architecture = self.family.parse_architecture(config)
        view = replace(self, path=path, config=config, architecture=architecture, specs=specs)
        return replace(view, entries={**self.entries, **tables}, vocabulary=vocabulary, view_of=self)

    @property
    def source(self) -> Self:
        """The checkpoint that is on disk."""
        return self.view_of.source if self.view_of else self

    @property
    def name(self) -> str:
        """Return the name of the model: `owner/name` in a cache of the hub, else the name of the folder."""
        return folder_name(self.source.path)

    @property
    def merged_name(self) -> str:
        """Return the name of the model with those of its adapters: `base+adapter`."""
        return merged_name(self.name, [adapter.name for adapter in self.adapters])

    @property
    def adapter_paths(self) -> tuple[Path, ...]:
        """Return the folders of the adapters, in order."""
        return tuple(adapter.path for adapter in self.adapters)

    @property
    def folders(self) -> dict[Path, str]:
        """Return the folders that are read, with their kinds: nothing is written into them."""
        return {self.source.path: "checkpoint"} | dict.fromkeys(self.adapter_paths, "adapter")

    @property
    def revision(self) -> str | None:
        """Return the commit of a folder in a cache of the hub."""
        return snapshot_commit(self.source.path)

    def dtype(self, spec: TensorSpec) -> str:
        """Return the dtype of a loaded tensor, as torch names it; float64 is loaded as float32."""
        stored = self.entries[spec.name].torch_dtype
        return "float32" if stored == "float64" else stored

    def load(self, spec: TensorSpec) -> "Tensor":
        """Return a tensor in its stored dtype; a matrix stored as [in, out] is transposed to [out, in]."""
        tensor = self.load_stored(spec)
        return tensor.T.contiguous() if spec.transposed else tensor

    def load_float32(self, spec: TensorSpec) -> "Tensor":
        """Return a tensor [out, in] in float32, converted in chunks so that its stored values are not in memory too."""
        if len(spec.shape) != 2 or spec.transposed:
            return self.load(spec).float()
        import torch

        values, end = torch.empty(spec.shape), 0
        for rows in self.load_rows(spec, CHUNK_WEIGHTS):
            begin, end = end, end + len(rows)
            values[begin:end] = rows
        return values

    def load_stored(self, spec: TensorSpec) -> "Tensor":
        """Return a tensor with the shape of the file, and its dtype if that is not float64."""
        entry = self.entries[spec.name]
        return self._merge(spec, _tensor(read_bytes(entry), entry).reshape(entry.shape))

    def load_every(self, spec: TensorSpec, step: int) -> "Tensor":
        """Return every `step`-th row of a matrix or table [out, in] in its stored dtype; other rows are not read."""
        entry = self.entries[spec.name]
        if step == 1 or spec.transposed or entry.transposed:
            return self.load(spec)[::step]
        row_nbytes = entry.nbytes // entry.shape[0]
        rows = bytearray()
        for begin in range(0, entry.nbytes, step * row_nbytes):
            rows += read_bytes(entry, begin, begin + row_nbytes).tobytes()
        return self._merge(spec, _tensor(rows, entry).reshape(-1, *entry.shape[1:]), step=step)

    def load_rows(self, spec: TensorSpec, max_weights: int) -> Iterator["Tensor"]:
        """Yield a matrix or table [out, in] in chunks of rows; a (small) matrix stored as [in, out] in one chunk."""
        entry = self.entries[spec.name]
        if spec.transposed or entry.transposed:
            yield self.load(spec)
            return
        row_nbytes = entry.nbytes // entry.shape[0]
        step = max(1, max_weights // entry.shape[1]) * row_nbytes
        for begin in range(0, entry.nbytes, step):
            rows = read_bytes(entry, begin, min(begin + step, entry.nbytes))
            yield self._merge(spec, _tensor(rows, entry).reshape(-1, entry.shape[1]), begin // row_nbytes)

    def _merge(self, spec: TensorSpec, rows: "Tensor", first_row: int = 0, step: int = 1) -> "Tensor":
        """Merge the adapters into every `step`-th row from `first_row` on."""
        selected = self.entries[spec.name].rows
        for adapter in self.adapters:
            if (change := adapter.changes.get(spec.name)) is not None:
                from mcpmq.checkpoint.merging import merge_rows, merge_selected_rows

                if selected is None:
                    rows = merge_rows(change, rows, first_row, step)
                else:
                    rows = merge_selected_rows(change, rows, selected[first_row::step][: len(rows)])
        return rows

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def code_files(self) -> list[Path]:
        """Return the Python files if config.json refers to them; mcpmq copies them and never runs them."""
        return sorted(self.source.path.glob(CODE_PATTERN)) if "auto_map" in self.config else []

    @cached_property
    def text_files(self) -> tuple[TextFile, ...]:
        """Return the configuration, tokenizer and processor files, sorted by name."""
        found = {file for pattern in TEXT_PATTERNS for file in self.path.glob(pattern)}
        names = sorted(file for file in found if not file.name.endswith(".index.json"))
        return tuple(text_file(file, self.config if file.name == CONFIG else None) for file in names)

    @property
    def license_files(self) -> list[Path]:
        """Return the model card, license and notice files, sorted."""
        found = {file for pattern in LICENSE_PATTERNS for file in self.source.path.glob(pattern)}
        return sorted(file for file in found if not file.is_dir())

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of configuration, weight files by name, and adapters; a view has that of the original."""
        if self.view_of:
            return self.view_of.sha256
        digest = hashlib.sha256()
        files = [self.path / CONFIG, *sorted({entry.file for entry in self.entries.values()})]
        with ThreadPoolExecutor(MAX_HASHED_FILES) as pool:
            for file, sha256 in zip(files, pool.map(file_sha256, files), strict=True):
                digest.update(file.name.encode() + bytes.fromhex(sha256))
        for adapter in self.adapters:
            digest.update(bytes.fromhex(adapter.sha256))
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
            **({"audio": str(self.architecture.audio)} if self.architecture.audio else {}),
        }


def _tensor(values: "NDArray[np.uint8] | bytearray", entry: TensorEntry) -> "Tensor":
    import torch

    tensor = torch.frombuffer(values, dtype=getattr(torch, entry.torch_dtype))
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _check_files(path: Path) -> None:
    """Check all files that are read or copied: no links out of the folder, no devices, and texts of bounded size."""
    check_files(path, [WEIGHT_PATTERN], CheckpointError)
    check_files(path, [*TEXT_PATTERNS, CODE_PATTERN, TEMPLATE_PATTERN], CheckpointError, MAX_TEXT_NBYTES)
    names = [file.name for pattern in LICENSE_PATTERNS for file in path.glob(pattern) if not file.is_dir()]
    for name in names:
        check_file(path / name, path, CheckpointError, MAX_TEXT_NBYTES)


def _family(config: Mapping[str, Any]) -> Family:
    try:
        return family_of(config)
    except CheckpointError as error:
        if "auto_map" not in config:
            raise
        hint = f"mcpmq never runs the code that config.json refers to; {error.hint}"
        raise CheckpointError(str(error), hint) from error
