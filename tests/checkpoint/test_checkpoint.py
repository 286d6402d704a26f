"""Checkpoints: reading, validation of configuration and weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcpmq.checkpoint import INDEX, Checkpoint
from mcpmq.errors import CheckpointError
from tests.tiny import CONFIG, random_tensors


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint that a test can change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def _edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def test_every_tensor_loads_with_the_saved_values(tiny_checkpoint: Path) -> None:
    """A tensor loaded by its common name equals the one saved under its hub name."""
    saved = random_tensors(CONFIG, seed=0)

    checkpoint = Checkpoint.open(tiny_checkpoint)

    assert {spec.hub_name for spec in checkpoint.specs} == saved.keys()
    for spec in checkpoint.specs:
        assert torch.equal(checkpoint.load_stored(spec), saved[spec.hub_name])


def test_a_transposed_tensor_is_loaded_as_out_in(tiny_checkpoint: Path) -> None:
    """The output matrix of the resampler is stored as [in, out] and loaded as [out, in]."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    spec = next(spec for spec in checkpoint.specs if spec.transposed)

    assert torch.equal(checkpoint.load(spec), checkpoint.load_stored(spec).T)


def test_the_hash_changes_with_one_byte(tiny_checkpoint: Path, copy: Path) -> None:
    """A copy has the same SHA-256; after a change of one byte of a weight it differs."""
    original = Checkpoint.open(tiny_checkpoint).sha256
    assert Checkpoint.open(copy).sha256 == original

    shard = next(copy.glob("*.safetensors"))
    whole = bytearray(shard.read_bytes())
    whole[-1] ^= 1
    shard.write_bytes(whole)

    assert Checkpoint.open(copy).sha256 != original


def test_a_path_that_does_not_exist_is_rejected(tmp_path: Path) -> None:
    """A missing path is not taken for a hub id."""
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "nothing")


def test_a_file_is_rejected(tiny_checkpoint: Path) -> None:
    """The path of a file in the checkpoint is an error."""
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(tiny_checkpoint / "config.json")


def test_a_folder_without_configuration_is_rejected(tmp_path: Path) -> None:
    """An empty folder is an error."""
    with pytest.raises(CheckpointError, match="no `config.json`"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000])
def test_a_broken_configuration_is_rejected(copy: Path, text: str) -> None:
    """Content that is not a JSON object is an error with the file name."""
    (copy / "config.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(copy)


def test_an_unknown_family_names_the_supported_ones(copy: Path) -> None:
    """The error has the model type, the hint the supported families."""
    _edit_config(copy, model_type="minicpmw")

    with pytest.raises(CheckpointError, match="minicpmw") as caught:
        Checkpoint.open(copy)

    assert "minicpm-v-2.6" in caught.value.hint


def test_an_unknown_family_with_remote_code_is_rejected(copy: Path) -> None:
    """A configuration with `auto_map` is an error, and its code is not run."""
    _edit_config(copy, model_type="other", auto_map={"AutoModel": "modeling.Other"})

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(copy)

    assert "never" in caught.value.hint


def test_remote_code_of_a_known_family_is_not_run(copy: Path) -> None:
    """With `auto_map` of a supported family no file of the folder is imported."""
    _edit_config(copy, auto_map={"AutoModel": "modeling_minicpmv.MiniCPMV"})
    (copy / "modeling_minicpmv.py").write_text("raise SystemExit('remote code ran')")

    assert Checkpoint.open(copy).family.name == "minicpm-v-2.6"


@pytest.mark.parametrize("key", ["hidden_size", "vision_config", "num_hidden_layers"])
def test_a_configuration_that_lacks_a_size_is_rejected(copy: Path, key: str) -> None:
    """The error has the missing key."""
    config = json.loads((copy / "config.json").read_text())
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=key):
        Checkpoint.open(copy)


@pytest.mark.parametrize("value", [-1, 0, 10**9, 200, "many"])
def test_an_invalid_size_is_rejected(copy: Path, value: object) -> None:
    """Negative, zero, too large, not a multiple of 128, not a number."""
    _edit_config(copy, hidden_size=value)

    with pytest.raises(CheckpointError, match="hidden_size"):
        Checkpoint.open(copy)


def test_pickled_weights_are_rejected(copy: Path) -> None:
    """`.bin` files are never opened."""
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")

    with pytest.raises(CheckpointError, match="pickled"):
        Checkpoint.open(copy)


def test_a_folder_without_weights_is_rejected(copy: Path) -> None:
    """A configuration without weights is an error."""
    for file in copy.glob("*.safetensors*"):
        file.unlink()

    with pytest.raises(CheckpointError, match="safetensors"):
        Checkpoint.open(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    """A file that the index lists and that is missing is an error with its name."""
    (copy / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        Checkpoint.open(copy)


def test_an_index_that_points_outside_is_rejected(copy: Path) -> None:
    """A shard with a path in its name is an error."""
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["llm.lm_head.weight"] = "../model.safetensors"
    (copy / INDEX).write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"\.\./model"):
        Checkpoint.open(copy)


def test_an_index_that_misplaces_a_tensor_is_rejected(copy: Path) -> None:
    """A tensor that is not in the shard of the index is an error with its name."""
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["llm.extra.weight"] = "model-00001-of-00002.safetensors"
    (copy / INDEX).write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"llm\.extra"):
        Checkpoint.open(copy)


def test_one_file_without_an_index_is_valid(copy: Path) -> None:
    """A checkpoint in one file is opened without an index."""
    tensors = {name: tensor for file in copy.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, copy / "model.safetensors")

    assert len(Checkpoint.open(copy).entries) == len(tensors)


def _rewrite(copy: Path, **changes: torch.Tensor | None) -> None:
    tensors: dict[str, torch.Tensor | None] = {}
    for file in copy.glob("*.safetensors*"):
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        file.unlink()
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, copy / "model.safetensors")


def test_a_missing_tensor_is_named(copy: Path) -> None:
    """The error has the number of missing tensors and the first name."""
    _rewrite(copy, llm__lm_head__weight=None)

    with pytest.raises(CheckpointError, match=r"1 tensors are missing, first `llm\.lm_head\.weight`"):
        Checkpoint.open(copy)


def test_an_unknown_tensor_is_named(copy: Path) -> None:
    """A tensor that the family does not list is an error with its name."""
    _rewrite(copy, llm__surprise=torch.zeros(1))

    with pytest.raises(CheckpointError, match=r"llm\.surprise"):
        Checkpoint.open(copy)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(copy: Path) -> None:
    """The error has the stored shape and the required shape."""
    _rewrite(copy, llm__lm_head__weight=torch.zeros(3, 256))

    with pytest.raises(CheckpointError, match=r"\[3, 256\].*\[320, 256\]"):
        Checkpoint.open(copy)


def test_a_hub_id_without_network_has_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the error has the hub id, and the hint asks for a folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(CheckpointError, match="somebody/something") as caught:
        Checkpoint.open("somebody/something")

    assert "folder" in caught.value.hint


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "model.safetensors", "LICENSE", "NOTICE.md", "x.jinja"])
@pytest.mark.parametrize("kind", ["link", "FIFO", "device"])
def test_no_file_outside_of_the_checkpoint_is_read(name: str, kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A link out of the folder, a FIFO and a device are rejected before anything is read."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / name).unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else Path(__file__))

    with pytest.raises(CheckpointError, match=f"{name}` is (outside of the folder|not a regular file)"):
        Checkpoint.open(folder)


def test_a_huge_text_file_is_rejected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Texts are copied into artifacts, so their size is limited to 256 MiB."""
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    with (tmp_path / "checkpoint" / "corpus.txt").open("wb") as file:
        file.truncate((256 << 20) + 1)

    with pytest.raises(CheckpointError, match="corpus.txt` has 268,435,457 bytes, more than 268,435,456"):
        Checkpoint.open(tmp_path / "checkpoint")
