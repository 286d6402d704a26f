"""Metadata of models that llama.cpp would compute differently is rejected, before a file is written."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.families.family import Architecture
from mcpmq.formats.gguf.files import MetadataWriter, gguf_files
from mcpmq.formats.gguf.sizes import forecast_files
from mcpmq.formats.model_view import PlannedModel
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.tiny_families import TINY_FAMILIES

Change = Callable[[Architecture], Architecture]


def _vision(**changes: Any) -> Change:
    return lambda architecture: replace(architecture, vision=replace(architecture.required_vision, **changes))


def _language(**changes: Any) -> Change:
    return lambda architecture: replace(architecture, language=replace(architecture.language, **changes))


def _linear_attention(**changes: Any) -> Change:
    def change(architecture: Architecture) -> Architecture:
        assert architecture.language.linear_attention is not None
        linear = replace(architecture.language.linear_attention, **changes)
        return _language(linear_attention=linear)(architecture)

    return change


def _planned(family: str, folder: Path) -> PlannedModel:
    tiny = next(tiny for tiny in TINY_FAMILIES if tiny.name == family and not tiny.variant)
    return PlannedModel(make_plan(Checkpoint.open(tiny.build(folder / "tiny")), Recipe.load("full")))


def _add_all_metadata(model: Any, folder: Path) -> None:
    for index, file in enumerate(gguf_files(model)):
        writer = GGUFWriter(folder / f"{index}.gguf", file.architecture)
        file.add_metadata(writer)
        writer.close()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen2-vl", _vision(temporal_patch_size=1), "temporal patch size 1 and spatial merge size 2"),
        ("qwen2-vl", _vision(spatial_merge_size=4), "temporal patch size 2 and spatial merge size 4"),
        ("qwen3-vl", _vision(spatial_merge_size=4), "spatial merge size 4"),
        ("qwen2.5-vl", _vision(window_size=4), "windows have 4x4 patches"),
        ("qwen2.5-vl", _vision(full_attention_layers=()), r"layers \[\] have full attention"),
        ("qwen2.5-vl", _vision(full_attention_layers=(0, 2)), r"layers \[0, 2\] have full attention"),
        ("minicpm-v-2.5", _vision(position_grid_size=50), "position grid of side 50"),
        ("minicpm-v-4.6", _vision(position_grid_size=50), "position grid of side 50"),
        ("minicpm-v-2.0", _vision(slice_resolution=70), "config.json of 70"),
        ("minicpm3", _language(embedding_scale=11.0), "llama.cpp uses"),
        ("minicpm3", _language(residual_scale=0.3), "llama.cpp uses"),
        ("minicpm3", _language(logits_divisor=2.5), "llama.cpp uses"),
        ("minicpm-v-4.6", _linear_attention(value_head_dim=8), "value heads of 8"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_differently_is_rejected(
    family: str, change: Change, message: str, tmp_path: Path
) -> None:
    """The error names the size and the constant of llama.cpp; the unchanged model is accepted."""
    model = _planned(family, tmp_path)
    _add_all_metadata(model, tmp_path)
    names = ("path", "artifact", "config", "specs", "records", "tensors", "scheme")
    changed = SimpleNamespace(**{name: getattr(model, name) for name in names}, architecture=change(model.architecture))

    with pytest.raises(FormatError, match=message):
        _add_all_metadata(changed, tmp_path)


@pytest.mark.parametrize(("key", "value"), [("rms_norm_eps", 1e39), ("max_position_embeddings", 1 << 32)])
def test_a_value_of_more_than_32_bits_is_an_error(key: str, value: float, tmp_path: Path) -> None:
    """GGUF has 32 bits for the numbers of config.json; the forecast rejects others before work."""
    path = next(family for family in TINY_FAMILIES if family.name == "minicpm-v-2.6").build(tmp_path)
    config = json.loads((path / "config.json").read_text())
    assert key in config
    (path / "config.json").write_text(json.dumps(config | {key: value}))
    model = PlannedModel(make_plan(Checkpoint.open(path), Recipe.load("phone-int4")))

    with pytest.raises(FormatError, match="GGUF does not represent a value of the model"):
        forecast_files(model)


def test_memory_parameters_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """The KV cache is F16, weights are resident once, and one batch of 512 tokens may need logits."""
    runtime = forecast_files(_planned("minicpm-v-2.5", tmp_path)).runtime

    assert (runtime.kv_cache_element_nbytes, runtime.resident_ratio, runtime.logits_per_pass) == (2, 1.0, 512)


@pytest.mark.parametrize(
    "values", [["a", "", "é☃"], [1, -2, 3], [TokenType.NORMAL], [0.5, -3.0], [True, False], [[1, 2], [3]]], ids=str
)
def test_arrays_have_the_bytes_of_the_writer_of_gguf(values: list[Any], tmp_path: Path) -> None:
    """Fast arrays of texts, integers and floats, and all others, are those of gguf."""
    written = []
    for kind in (GGUFWriter, MetadataWriter):
        with closing(kind(tmp_path / "file.gguf", "qwen2")) as writer:
            writer.add_array("tokenizer.ggml.values", values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
        written.append((tmp_path / "file.gguf").read_bytes())

    assert written[0] == written[1]
    assert len(written[0]) > 60


@pytest.mark.parametrize("values", [[1, "a"], [1, 2.5], [True, 1]], ids=str)
def test_arrays_of_several_types_are_an_error(values: list[Any], tmp_path: Path) -> None:
    """Nothing is converted to the type of the first value."""
    with closing(MetadataWriter(tmp_path / "file.gguf", "qwen2")) as writer:
        writer.add_array("tokenizer.ggml.values", values)
        writer.write_header_to_file()
        with pytest.raises(ValueError, match="same type"):
            writer.write_kv_data_to_file()
