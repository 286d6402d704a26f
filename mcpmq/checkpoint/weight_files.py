"""Weight files of a checkpoint folder: selection in the order of transformers, and reasons not to read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpmq.errors import CheckpointError
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import STORED_DTYPES, TensorEntry, have_equal_values, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EXPLICIT_KEY = "transformers_weights"  # key of config.json that names the weight file or the index
ADAPTER_CONFIG = "adapter_config.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
UNQUANTIZED_HINT = "use the checkpoint that it was made from, with BF16, F16 or F32 weights"
MERGE_HINT = "give its base model, and the adapter with `--lora`"
DTYPE_KEYS = ("dtype", "torch_dtype")
DECLARED_DTYPES = {"bfloat16", "float16", "float32", "float64", "half", "float", "double", "auto"}


def check_not_adapter(folder: Path) -> None:
    """Check that a folder is not a LoRA adapter.

    Raises:
        CheckpointError: the folder has an `adapter_config.json`.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    raise CheckpointError(
        f"`{folder}` has an adapter (`{ADAPTER_CONFIG}`) for the base model `{base}`",
        f"{MERGE_HINT}; if the weights here are merged already, remove `{ADAPTER_CONFIG}`",
    )


def check_declared_dtypes(config: Mapping[str, Any]) -> None:
    """Check the dtypes in config.json and the configurations in it, which transformers reads as attributes of torch.

    Raises:
        CheckpointError: a name is not that of a floating-point dtype.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_declared_dtypes(value)
        elif key in DTYPE_KEYS and isinstance(value, str) and value.removeprefix("torch.") not in DECLARED_DTYPES:
            raise CheckpointError(
                f"`{key}` in config.json is `{value}`, which is not a floating-point dtype",
                f"set one of: {', '.join(sorted(DECLARED_DTYPES))}",
            )


def check_not_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that neither config.json nor another file declares quantized weights.

    Raises:
        CheckpointError: the checkpoint is already quantized.
    """
    text = config.get("text_config")
    for declared in (config, text if isinstance(text, Mapping) else {}):
        for key in QUANTIZATION_KEYS:
            if settings := declared.get(key):
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                message = f"the checkpoint is already quantized: `config.json` has `{key}`"
                raise CheckpointError(message + (f" with the method `{method}`" if method else ""), UNQUANTIZED_HINT)
    for name in QUANTIZATION_FILES:
        if (folder / name).is_file():
            raise CheckpointError(f"the checkpoint is already quantized: `{folder}` has `{name}`", UNQUANTIZED_HINT)


def read_entries(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """Return the tensors of the weight files by stored name.

    As in transformers, `transformers_weights` of config.json selects the file; else `model.safetensors` is read, else
    the files in the index. Other files are not read.

    Raises:
        CheckpointError: no weight file is found, a file is invalid, or `model.safetensors` and the index differ.
    """
    if (explicit := config.get(EXPLICIT_KEY)) is not None:
        return _explicit_entries(folder, explicit)
    if (folder / WEIGHTS).is_file():
        entries = read_header(folder / WEIGHTS, STORED_DTYPES)
        if (folder / INDEX).is_file():
            _check_index_agrees(folder, entries)
        return entries
    if (folder / INDEX).is_file():
        return _indexed_entries(folder, INDEX)
    raise _no_weights(folder)


def shard_names(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the weight files besides `model.safetensors` that `read_entries` selects, sorted.

    Raises:
        CheckpointError: the index is invalid.
    """
    explicit = config.get(EXPLICIT_KEY)
    selected = explicit if isinstance(explicit, str) else INDEX
    names = [selected]
    if selected.endswith(".index.json"):
        is_local = Path(selected).name == selected and (folder / selected).is_file()
        names = sorted(set(_weight_map(folder / selected).values())) if is_local else []
    return [name for name in names if Path(name).name == name and name.endswith(".safetensors") and name != WEIGHTS]


def _explicit_entries(folder: Path, name: object) -> dict[str, TensorEntry]:
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise CheckpointError(
            f"`config.json` selects the weight file `{name}`, which is not in `{folder}`",
            f"download the file, or remove `{EXPLICIT_KEY}` from config.json",
        )
    if name.endswith(".index.json"):
        return _indexed_entries(folder, name)
    return read_header(folder / name, STORED_DTYPES)


def _indexed_entries(folder: Path, name: str) -> dict[str, TensorEntry]:
    weight_map = _weight_map(folder / name)
    entries: dict[str, TensorEntry] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise CheckpointError(f"`{name}` lists `{file}`, which is not in `{folder}`", "download the missing shard")
        shard = read_header(folder / file, STORED_DTYPES)
        if twice := sorted(entries.keys() & shard.keys()):
            first = entries[twice[0]].file.name
            raise CheckpointError(f"`{twice[0]}` is in two shards, `{first}` and `{file}`", "download the shards again")
        entries |= shard
    for tensor, file in sorted(weight_map.items()):
        if tensor not in entries or entries[tensor].file.name != file:
            raise CheckpointError(
                f"`{file}` does not have `{tensor}`, which `{name}` places there", "download it again"
            )
    return entries


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if isinstance(weight_map, dict) and weight_map and all(isinstance(file, str) for file in weight_map.values()):
        return weight_map
    raise CheckpointError(f"`{index}` has no `weight_map` from tensors to files", "download it again")


def _check_index_agrees(folder: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Check that the shards, if all of them exist, have the same tensors as `model.safetensors`."""
    if not all((folder / file).is_file() for file in _weight_map(folder / INDEX).values()):
        return  # left behind by another version of the model; transformers does not read it either
    indexed = _indexed_entries(folder, INDEX)
    for name in sorted(entries.keys() | indexed.keys()):
        if not _have_same(name, entries, indexed):
            raise CheckpointError(
                f"`{WEIGHTS}` and the shards of `{INDEX}` in `{folder}` differ, first in `{name}`",
                f"remove the files of the model that you do not want; transformers would read `{WEIGHTS}`",
            )


def _have_same(name: str, entries: Mapping[str, TensorEntry], others: Mapping[str, TensorEntry]) -> bool:
    entry, other = entries.get(name), others.get(name)
    if entry is None or other is None:
        return False
    return entry == other or (entry.shape == other.shape and have_equal_values(entry, other))


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in folder.glob(pattern))
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return CheckpointError(
            f"`{folder}` has neither `{WEIGHTS}` nor `{INDEX}`, which say which of `{'`, `'.join(others[:3])}` is the"
            " model",
            _hint_for(others[0]),
        )
    if pickles:
        return CheckpointError(
            f"`{folder}` has pickled weights (`{pickles[0]}`), which can run code when opened",
            "convert them to safetensors where you trust them, then convert that folder",
        )
    return CheckpointError(
        f"no `.safetensors` file in `{folder}`", f"download `{WEIGHTS}`, or `{INDEX}` and its shards"
    )


def _hint_for(file: str) -> str:
    if file.startswith("adapter"):
        return MERGE_HINT
    return f"download `{INDEX}` for shards, or rename a single file to `{WEIGHTS}`"
