"""Selection of weight files, and checkpoints that are not read."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mcpmq.checkpoint.weight_files import (
    check_declared_dtypes,
    check_not_adapter,
    check_not_quantized,
    read_entries,
)
from mcpmq.errors import CheckpointError
from tests.checkpoint_tools import rewrite_weights, save_weights, stored_tensors

NORM = "llm.model.norm.weight"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint in two shards, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_stray_files_are_not_read(copy: Path) -> None:
    """A weight in a file beside the single file or the shards does not replace that of the model."""
    values = stored_tensors(copy)
    for name in ("a.safetensors", "old.safetensors", "zz.safetensors", "adapter_model.safetensors"):
        save_weights(copy / name, {NORM: values[NORM] * 3, "extra": torch.zeros(2)})
    assert read_entries(copy, {}).keys() == values.keys()
    assert read_entries(copy, {})[NORM].file.name.startswith("model-0000")

    for shard in copy.glob("model*"):
        shard.unlink()
    save_weights(copy / "model.safetensors", values)
    assert read_entries(copy, {}).keys() == values.keys()
    assert {entry.file.name for entry in read_entries(copy, {}).values()} == {"model.safetensors"}


def test_a_single_file_precedes_the_index(copy: Path) -> None:
    """With equal tensors the single file is read; with a different value, dtype or name both are named."""
    values = stored_tensors(copy)
    save_weights(copy / "model.safetensors", values)
    assert {entry.file.name for entry in read_entries(copy, {}).values()} == {"model.safetensors"}

    other = values[NORM].clone()
    other[-1] += 1
    without = {name: value for name, value in values.items() if name != NORM}
    for changed in ({**values, NORM: other}, {**values, NORM: values[NORM][:-1]}, without):
        save_weights(copy / "model.safetensors", changed)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors.*index\.json.*{NORM}"):
            read_entries(copy, {})


def test_an_index_whose_shards_are_gone_is_ignored_beside_a_single_file(copy: Path) -> None:
    """transformers does not read the index either."""
    save_weights(copy / "model.safetensors", stored_tensors(copy))
    (copy / "model-00002-of-00002.safetensors").unlink()

    assert {entry.file.name for entry in read_entries(copy, {}).values()} == {"model.safetensors"}


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "weights.safetensors", "model-00001-of-00001.safetensors"])
def test_other_file_names_need_an_index(copy: Path, name: str) -> None:
    """As in transformers, a file with another name is not read; the error names it and the hint names the index."""
    rewrite_weights(copy, stored_tensors(copy), name)

    with pytest.raises(CheckpointError, match=name) as caught:
        read_entries(copy, {})
    assert "index" in caught.value.hint


def test_the_configuration_can_select_the_file(copy: Path) -> None:
    """`transformers_weights` names a file or an index in the folder, and nothing outside of it."""
    save_weights(copy / "other.safetensors", {"only": torch.zeros(1)})
    assert read_entries(copy, {"transformers_weights": "other.safetensors"}).keys() == {"only"}
    (copy / "other.safetensors.index.json").write_text(json.dumps({"weight_map": {"only": "other.safetensors"}}))
    assert read_entries(copy, {"transformers_weights": "other.safetensors.index.json"}).keys() == {"only"}

    for name in ("missing.safetensors", "../copy/other.safetensors", 5):
        with pytest.raises(CheckpointError, match="selects the weight file"):
            read_entries(copy, {"transformers_weights": name})


def test_a_tensor_in_two_shards_is_rejected(copy: Path) -> None:
    """Readers would take different ones; both files are named."""
    first, second = sorted(copy.glob("model-*"))
    held = stored_tensors(copy)
    entries = read_entries(copy, {})
    in_second = {name: value for name, value in held.items() if entries[name].file.name == second.name}
    name = next(name for name, entry in entries.items() if entry.file.name == first.name)
    save_weights(second, {**in_second, name: held[name]})

    with pytest.raises(CheckpointError, match=rf"{first.name}.*{second.name}"):
        read_entries(copy, {})


def test_an_adapter_folder_is_rejected(tmp_path: Path) -> None:
    """The base model is named, and the hint is to merge."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"}))

    with pytest.raises(CheckpointError, match="Qwen2-VL-2B-Instruct") as caught:
        check_not_adapter(tmp_path)
    assert "`--lora`" in caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        {"compression_config": {"format": "pack-quantized"}},
        {"quantization_config": "int8"},
    ],
)
def test_a_declared_quantization_is_rejected(tmp_path: Path, config: dict[str, object]) -> None:
    """The key and the method are named, wherever config.json has them."""
    with pytest.raises(CheckpointError, match="already quantized"):
        check_not_quantized(tmp_path, config)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_file_about_quantization_is_rejected(tmp_path: Path, file: str) -> None:
    """Older tools declare the quantization in a file of its own; an empty declaration in config.json means none."""
    check_not_quantized(tmp_path, {"quantization_config": None, "text_config": None})
    (tmp_path / file).write_text("{}")

    with pytest.raises(CheckpointError, match=f"already quantized.*{file}"):
        check_not_quantized(tmp_path, {})


def test_dtypes_of_config_json_are_names_of_floating_point_dtypes() -> None:
    """Any other text would be an attribute of torch to transformers, at any depth of the configuration."""
    check_declared_dtypes({"torch_dtype": "bfloat16", "vision_config": {"dtype": "torch.float32"}, "dtype": None})

    for config in ({"dtype": "/dev/zero"}, {"text_config": {"torch_dtype": "save"}}):
        with pytest.raises(CheckpointError, match="which is not a floating-point dtype") as caught:
            check_declared_dtypes(config)
        assert "bfloat16" in caught.value.hint
