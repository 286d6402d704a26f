"""A checkpoint is opened whole and checked, or refused with the reason."""

import json
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
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def _edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


def test_every_tensor_is_known_and_loads_as_it_was_saved(tiny_checkpoint: Path) -> None:
    """Loading by common name gives the bytes that the hub name was saved with."""
    saved = random_tensors(CONFIG, seed=0)

    checkpoint = Checkpoint.open(tiny_checkpoint)

    assert {spec.hub_name for spec in checkpoint.specs} == saved.keys()
    for spec in checkpoint.specs:
        assert torch.equal(checkpoint.load_stored(spec), saved[spec.hub_name])


def test_a_transposed_tensor_is_turned(tiny_checkpoint: Path) -> None:
    """The resampler's output matrix is stored [in, out] and loaded [out, in]."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    spec = next(spec for spec in checkpoint.specs if spec.transposed)

    assert torch.equal(checkpoint.load(spec), checkpoint.load_stored(spec).T)


def test_the_hash_tells_one_checkpoint_from_another(tiny_checkpoint: Path, copy: Path) -> None:
    """A copy has the same hash until one byte of a weight changes."""
    original = Checkpoint.open(tiny_checkpoint).sha256
    assert Checkpoint.open(copy).sha256 == original

    shard = next(copy.glob("*.safetensors"))
    whole = bytearray(shard.read_bytes())
    whole[-1] ^= 1
    shard.write_bytes(whole)

    assert Checkpoint.open(copy).sha256 != original


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A mistyped path is no hub id."""
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "nothing")


def test_a_file_is_refused(tiny_checkpoint: Path) -> None:
    """The folder is wanted, not a file in it."""
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(tiny_checkpoint / "config.json")


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    """An empty folder is no checkpoint."""
    with pytest.raises(CheckpointError, match="no `config.json`"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000])
def test_a_broken_configuration_is_refused(copy: Path, text: str) -> None:
    """Whatever is no JSON object is named so."""
    (copy / "config.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(copy)


def test_an_unknown_family_names_the_supported_ones(copy: Path) -> None:
    """The error says what was found, the hint what is supported."""
    _edit_config(copy, model_type="minicpmw")

    with pytest.raises(CheckpointError, match="minicpmw") as caught:
        Checkpoint.open(copy)

    assert "minicpm-v-2.6" in caught.value.hint


def test_an_unknown_family_that_wants_remote_code_is_told_that_none_is_run(copy: Path) -> None:
    """`auto_map` of a family without a native class is refused, never executed."""
    _edit_config(copy, model_type="other", auto_map={"AutoModel": "modeling.Other"})

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(copy)

    assert "never" in caught.value.hint


def test_code_that_comes_with_a_known_family_is_left_alone(copy: Path) -> None:
    """The published 2.6 has an `auto_map`; the native class is used and nothing is imported from the folder."""
    _edit_config(copy, auto_map={"AutoModel": "modeling_minicpmv.MiniCPMV"})
    (copy / "modeling_minicpmv.py").write_text("raise SystemExit('remote code ran')")

    assert Checkpoint.open(copy).family.name == "minicpm-v-2.6"


@pytest.mark.parametrize("key", ["hidden_size", "vision_config", "num_hidden_layers"])
def test_a_configuration_that_lacks_a_size_is_refused(copy: Path, key: str) -> None:
    """The missing key is named."""
    config = json.loads((copy / "config.json").read_text())
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=key):
        Checkpoint.open(copy)


@pytest.mark.parametrize("value", [-1, 0, 10**9, 200, "many"])
def test_an_impossible_size_is_refused(copy: Path, value: object) -> None:
    """Negative, zero, enormous, not a multiple of 128, no number."""
    _edit_config(copy, hidden_size=value)

    with pytest.raises(CheckpointError, match="hidden_size"):
        Checkpoint.open(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    """`.bin` files are never opened."""
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")

    with pytest.raises(CheckpointError, match="pickled"):
        Checkpoint.open(copy)


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    """Configuration alone is no checkpoint."""
    for file in copy.glob("*.safetensors*"):
        file.unlink()

    with pytest.raises(CheckpointError, match="safetensors"):
        Checkpoint.open(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    """The index says which file is not there."""
    (copy / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        Checkpoint.open(copy)


def test_an_index_that_points_outside_is_refused(copy: Path) -> None:
    """A shard is a plain file name."""
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["llm.lm_head.weight"] = "../model.safetensors"
    (copy / INDEX).write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"\.\./model"):
        Checkpoint.open(copy)


def test_an_index_that_misplaces_a_tensor_is_refused(copy: Path) -> None:
    """What the index places in a shard must be there."""
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["llm.extra.weight"] = "model-00001-of-00002.safetensors"
    (copy / INDEX).write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"llm\.extra"):
        Checkpoint.open(copy)


def test_one_file_without_an_index_is_enough(copy: Path) -> None:
    """A small checkpoint needs no shards."""
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
    """A checkpoint that is not whole is refused."""
    _rewrite(copy, llm__lm_head__weight=None)

    with pytest.raises(CheckpointError, match=r"1 tensors are missing, first `llm\.lm_head\.weight`"):
        Checkpoint.open(copy)


def test_an_unknown_tensor_is_named(copy: Path) -> None:
    """Nothing is skipped in silence."""
    _rewrite(copy, llm__surprise=torch.zeros(1))

    with pytest.raises(CheckpointError, match=r"llm\.surprise"):
        Checkpoint.open(copy)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(copy: Path) -> None:
    """The found shape and the expected one are both said."""
    _rewrite(copy, llm__lm_head__weight=torch.zeros(3, 256))

    with pytest.raises(CheckpointError, match=r"\[3, 256\].*\[320, 256\]"):
        Checkpoint.open(copy)


def test_a_hub_id_without_a_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the error names the id and the hint asks for a folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(CheckpointError, match="somebody/something") as caught:
        Checkpoint.open("somebody/something")

    assert "folder" in caught.value.hint
