"""LoRA adapters: PEFT folders, matched with the weights of a checkpoint from headers and merged when these are read."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Self

from mcpmq.checkpoint.adapter_config import HINT, AdapterConfig
from mcpmq.checkpoint.tensor_names import accepted_names, check_same_values, unwrap_name
from mcpmq.checkpoint.weight_files import ADAPTER_CONFIG, PICKLE_PATTERNS
from mcpmq.errors import CheckpointError
from mcpmq.families.family import TensorSpec
from mcpmq.system.file_hash import file_sha256
from mcpmq.system.input_file import check_files
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import FLOAT_DTYPES, STORED_DTYPES, TensorEntry, read_header

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_NBYTES = 16 << 20
MAX_NAMED = 5  # tensors in an error
ADAPTER_NAME = re.compile(r"(\.(?:lora_\w+|modules_to_save))\.default(?=\.|$)")  # kept by some training tools
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
WEIGHT_NAMES = ("weight", "in_proj_weight")  # of a linear layer, convolution or embedding, and of nn.MultiheadAttention
LOW_RANK_KEYS = {frozenset({"a", "b"}), frozenset({"embedding_a", "embedding_b"})}


@dataclass(frozen=True, slots=True)
class LowRank:
    """The product of two matrices that is added to a weight: `scaling` * B A (arXiv 2106.09685).

    `a` is [rank, columns] and `b` [rows, rank] for a weight [rows, columns], whose other axes are flattened; `a` is
    [rank, rows] and `b` [columns, rank] for an embedding. With a `magnitude` [rows], every row of the sum is scaled to
    that norm (DoRA, arXiv 2402.09353).
    """

    a: TensorEntry
    b: TensorEntry
    scaling: float
    is_embedding: bool
    additions: tuple[bool, ...]  # whether each addition rounds the product to the dtype of the weight first
    magnitude: TensorEntry | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """The changes of one weight: another value, then a product of low rank, or a vector that is added."""

    replacement: TensorEntry | None = None
    low_rank: LowRank | None = None
    added: TensorEntry | None = None  # bias of `b`, added to that of the layer
    scaling: float = 1.0  # of `added`


@dataclass(frozen=True)
class Adapter:
    """An adapter whose tensors match the weights of a checkpoint."""

    path: Path
    changes: Mapping[str, Change]  # by common name

    @classmethod
    def open(cls, folder: str | Path, specs: Sequence[TensorSpec]) -> Self:
        """Open the folder that PEFT saved, and match its tensors with the weights of a checkpoint; reads headers only.

        Raises:
            CheckpointError: a file is missing or invalid, the adapter cannot be merged, or one of its tensors matches
                no weight.
        """
        path = Path(folder)
        config, entries = _read(path)
        return cls(path, _Matching(config, specs, entries).changes())

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.path.resolve().name

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the configuration and the weights."""
        digest = hashlib.sha256()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            digest.update(name.encode() + bytes.fromhex(file_sha256(self.path / name)))
        return digest.hexdigest()


def _read(path: Path) -> tuple[AdapterConfig, dict[str, TensorEntry]]:
    if not (path / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"no `{ADAPTER_CONFIG}` in `{path}`", "give the folder of an adapter that PEFT saved")
    check_files(path, [ADAPTER_CONFIG], CheckpointError, MAX_CONFIG_NBYTES)
    check_files(path, ["*.safetensors"], CheckpointError)
    config = AdapterConfig.parse(read_json(path / ADAPTER_CONFIG))
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise _no_weights(path)
    if others := sorted(file.name for file in path.glob("*.safetensors") if file.name != ADAPTER_WEIGHTS):
        raise CheckpointError(
            f"`{path}` has weights beside `{ADAPTER_WEIGHTS}`: `{others[0]}`",
            "training changed more weights than those of the adapter: merge them with the training tool",
        )
    return config, read_header(path / ADAPTER_WEIGHTS, STORED_DTYPES)


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
    if pickles:
        return CheckpointError(
            f"`{path}` has pickled weights (`{pickles[0]}`), which can run code when opened",
            "load the adapter with PEFT where you trust it, and save it again",
        )
    return CheckpointError(f"no `{ADAPTER_WEIGHTS}` in `{path}`", "download the adapter again")


@dataclass(frozen=True, slots=True)
class _Target:
    """A weight of the checkpoint: its specification and the parameter that the adapter names."""

    spec: TensorSpec
    parameter: str
    name: str  # accepted name


@dataclass(frozen=True)
class _Matching:
    """The tensors of an adapter and the weights of a checkpoint."""

    config: AdapterConfig
    specs: Sequence[TensorSpec]
    entries: Mapping[str, TensorEntry]
    found: dict[str, Change] = field(default_factory=dict)

    def changes(self) -> dict[str, Change]:
        """Return the change of every weight, by common name."""
        modules, values = self._group()
        targets = {module: self._weight(module) for module in modules}
        unmatched = [tensor for module, parts in modules.items() if not targets[module] for tensor in parts.values()]
        unmatched += [tensor for name, tensor in values.items() if name not in self.names]
        if unmatched or not self.entries:
            raise _unmatched(unmatched)
        replaced = self._replacements(values)
        changes = {name: Change(replacement=entry) for name, entry in replaced.items()}
        for module, parts in modules.items():
            target = targets[module]
            assert target is not None
            for name, change in self._layer_changes(module, target, parts, replaced):
                if name in changes and changes[name] != Change(replacement=change.replacement):
                    raise CheckpointError(f"the adapter changes `{target.spec.hub_name}` twice", HINT)
                changes[name] = change
        return changes

    @cached_property
    def names(self) -> Mapping[str, tuple[TensorSpec, str]]:
        """The weights by every name that a checkpoint or a module of transformers gives them."""
        return accepted_names(self.specs)

    def _group(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Return the stored names of the parts of every changed layer, and those of weights that are replaced."""
        modules: dict[str, dict[str, str]] = {}
        values: dict[str, str] = {}
        for stored in sorted(self.entries):
            name = ADAPTER_NAME.sub(r"\1", unwrap_name(stored)).replace(".base_layer.", ".")
            suffix = next((suffix for suffix in PARTS if name.endswith(suffix)), None)
            if suffix:
                modules.setdefault(name.removesuffix(suffix), {})[PARTS[suffix]] = stored
            else:
                values[name.replace(".modules_to_save.", ".")] = stored
        return modules, values

    def _weight(self, module: str) -> _Target | None:
        for name in (f"{module}.{weight}" for weight in WEIGHT_NAMES):
            if name in self.names and not self.names[name][0].transposed:
                return _Target(*self.names[name], name)
        return None

    def _replacements(self, values: Mapping[str, str]) -> dict[str, TensorEntry]:
        """Return the weights that replace those of the checkpoint, by common name."""
        replaced: dict[str, dict[str, str]] = {}
        for name, stored in values.items():
            spec, parameter = self.names[name]
            _check_shape(stored, self.entries[stored], spec.shape, spec)
            replaced.setdefault(spec.name, {})[stored] = parameter
        for spec in self.specs:
            parameters = set(replaced.get(spec.name, {}).values())
            if spec.alias and len(parameters) == 1 and not self.config.ensure_weight_tying:
                raise _tied(spec)
        for first, *others in map(list, replaced.values()):
            for other in others:
                check_same_values(self.entries, first, other)
        return {name: self.entries[next(iter(stored))] for name, stored in replaced.items()}

    def _layer_changes(
        self, module: str, target: _Target, parts: Mapping[str, str], replaced: Mapping[str, TensorEntry]
    ) -> Iterator[tuple[str, Change]]:
        """Yield the changes of the weight of a layer, and of its bias."""
        spec = target.spec
        if spec.alias:
            raise _tied(spec)
        low_rank = self._low_rank(module, target, parts)
        yield spec.name, Change(replaced.get(spec.name), low_rank)
        if "bias" in parts:
            name = f"{module}.bias"
            if name not in self.names:
                raise CheckpointError(f"`{parts['bias']}` is added to a bias, and the layer has none", HINT)
            bias, added = self.names[name][0], self.entries[parts["bias"]]
            _check_shape(parts["bias"], added, bias.shape, bias)
            yield bias.name, Change(replaced.get(bias.name), None, added, low_rank.scaling)

    def _low_rank(self, module: str, target: _Target, parts: Mapping[str, str]) -> LowRank:
        keys = frozenset(parts) - {"magnitude", "bias"}
        if keys not in LOW_RANK_KEYS or ("magnitude" in parts) != self.config.use_dora:
            raise CheckpointError(
                f"the adapter has an incomplete set of tensors for `{module}`: {', '.join(sorted(parts.values()))}",
                "save the adapter again, with the settings of its training",
            )
        is_embedding, spec, rank = "embedding_a" in keys, target.spec, self.config.rank(module)
        a, b = (parts[key] for key in sorted(keys))
        rows, columns = spec.shape[0], prod(spec.shape[1:])
        shapes = ((rank, rows), (columns, rank)) if is_embedding else ((rank, columns), (rows, rank))
        for stored, shape in zip((a, b), shapes, strict=True):
            _check_shape(stored, self.entries[stored], shape, spec)
        return LowRank(
            self.entries[a],
            self.entries[b],
            self.config.scaling(module),
            is_embedding,
            _additions(parts[min(keys)], target, is_embedding=is_embedding),
            self._magnitude(parts, rows, spec, is_embedding=is_embedding),
        )

    def _magnitude(
        self, parts: Mapping[str, str], rows: int, spec: TensorSpec, *, is_embedding: bool
    ) -> TensorEntry | None:
        if not self.config.use_dora:
            return None
        if is_embedding:
            raise CheckpointError(f"DoRA of the embedding `{spec.hub_name}` scales its columns", HINT)
        stored = parts["magnitude"]
        entry = self.entries[stored]
        if prod(entry.shape) != rows or entry.dtype not in FLOAT_DTYPES:
            raise _other_shape(stored, entry, (rows,), spec)
        return entry


def _additions(stored: str, target: _Target, *, is_embedding: bool) -> tuple[bool, ...]:
    """Return the additions of PEFT, which adds the product twice to the output matrix of a nn.MultiheadAttention.

    PEFT computes so in training, too: the forward pass of such a module uses merged weights.
    """
    if ".base_layer.out_proj." in stored:
        return True, False
    return (is_embedding or target.name.endswith("in_proj_weight"),)


def _check_shape(stored: str, entry: TensorEntry, shape: Sequence[int], spec: TensorSpec) -> None:
    """Check the shape of a tensor; axes of a convolution kernel are part of the columns."""
    flat = (*entry.shape[: len(shape) - 1], prod(entry.shape[len(shape) - 1 :]))
    if flat != tuple(shape) or entry.dtype not in FLOAT_DTYPES:
        raise _other_shape(stored, entry, shape, spec)


def _other_shape(stored: str, entry: TensorEntry, shape: Sequence[int], spec: TensorSpec) -> CheckpointError:
    return CheckpointError(
        f"`{stored}` of the adapter has shape {list(entry.shape)} and dtype {entry.dtype}; `{spec.hub_name}` and"
        f" `{ADAPTER_CONFIG}` require floating-point values of shape {list(shape)}",
        "give the adapter and the base model that it was trained for",
    )


def _unmatched(tensors: Sequence[str]) -> CheckpointError:
    if not tensors:
        return CheckpointError(f"`{ADAPTER_WEIGHTS}` has no tensors", "save the adapter again")
    listed = ", ".join(f"`{name}`" for name in sorted(tensors)[:MAX_NAMED])
    more = f" and {len(tensors) - MAX_NAMED} others" if len(tensors) > MAX_NAMED else ""
    return CheckpointError(
        f"{len(tensors)} tensors of the adapter match no weight of the checkpoint: {listed}{more}",
        "give the adapter and the base model that it was trained for",
    )


def _tied(spec: TensorSpec) -> CheckpointError:
    return CheckpointError(
        f"the adapter changes one of embedding and head, which are one weight here (`{spec.hub_name}`)",
        f"{HINT}, with `tie_word_embeddings` false",
    )


def merged_name(name: str, adapters: Iterable[str]) -> str:
    """Return the name of a checkpoint with those of the adapters that are merged into it: `base+adapter`."""
    return "+".join((name, *adapters))
