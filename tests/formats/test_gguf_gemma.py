"""Gemma 3 in GGUF: models that llama.cpp would compute differently are rejected."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families import family_of
from mcpmq.formats.gguf.gemma import add_metadata
from tests.gguf_tools import metadata_value
from tests.tiny_families import GEMMA_3


def _write(folder: Path, **text: Any) -> GGUFReader:
    """Write the metadata of a tiny configuration with changed keys of the language model, and read it."""
    config = {**GEMMA_3.config, "text_config": {**GEMMA_3.config["text_config"], **text}}
    shape = family_of(config).parse_architecture(config).language
    writer = GGUFWriter(folder / "file.gguf", "gemma3")
    assert shape.local_attention
    add_metadata(writer, shape, shape.local_attention)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return GGUFReader(folder / "file.gguf")


def test_the_windows_and_both_rotary_settings_are_written(tmp_path: Path) -> None:
    """The keys are those that llama.cpp reads."""
    reader = _write(tmp_path)

    assert metadata_value(reader, "gemma3.attention.sliding_window") == 10
    assert metadata_value(reader, "gemma3.attention.sliding_window_pattern") == 2
    assert metadata_value(reader, "gemma3.rope.freq_base_swa") == 10000.0
    assert metadata_value(reader, "gemma3.rope.scaling.factor") == 8.0


def test_scores_are_scaled_as_llama_cpp_does(tmp_path: Path) -> None:
    """By the width of a head, and in the published model of 62 layers by the hidden size per head."""
    _write(tmp_path, num_hidden_layers=62, head_dim=16, query_pre_attn_scalar=32)
    with pytest.raises(FormatError, match=r"scaled by 0.125 \(`query_pre_attn_scalar`\), in llama.cpp by 0.176777"):
        _write(tmp_path, query_pre_attn_scalar=64)


def test_irregular_layers_are_rejected(tmp_path: Path) -> None:
    """llama.cpp has global attention in every n-th layer."""
    types = ["sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(FormatError, match="llama.cpp supports regular periods only"):
        _write(tmp_path, layer_types=types)
