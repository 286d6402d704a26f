"""The AWQ format: packed tensors, compared with the definition of the layout, and its configuration."""

import json
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.awq.packing import pack, unpack
from mcpmq.grids import dequantize
from mcpmq.scheme import IntegerScheme
from tests.hf_tools import code_at, export_hf_artifact, load_tensors, module_tensors, same_weight
from tests.onnx_tools import random_weight

GROUP_SIZES = (32, 64, 128)
SCHEMES = [IntegerScheme(4, group, symmetric) for group in GROUP_SIZES for symmetric in (True, False)]
POSITION_OF_OUTPUT = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 3), st.integers(1, 3))
def test_packed_tensors_dequantize_to_the_weight(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """The value (code - zero) * scale equals the weight; a word has its even outputs first, then the odd ones."""
    assert scheme.group_size
    rows, columns = 8 * rows, scheme.group_size * groups
    weight = random_weight(scheme, rows, columns)
    parts = pack(weight, "bfloat16")
    values = torch.empty(rows, columns)
    for row in range(0, rows, 3):
        place = row // 8 * 8 + POSITION_OF_OUTPUT[row % 8]
        for column in range(columns):
            group = column // scheme.group_size
            code, zero = (code_at(words, place, 4) for words in (parts["qweight"][column], parts["qzeros"][group]))
            values[row, column] = (code - zero) * parts["scales"][group, row].float()

    assert torch.equal(values[::3], dequantize(weight)[::3])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 5))
def test_unpack_inverts_pack(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """Codes, scales and zero points are equal after packing and unpacking."""
    assert scheme.group_size
    weight = random_weight(scheme, 8 * rows, scheme.group_size * groups)

    assert same_weight(unpack(pack(weight, "float16"), scheme), weight)


def test_config_has_the_scheme_and_the_unquantized_modules(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """config.json lists an unquantized layer and keeps its weight in the original dtype."""
    schemes = {"language.*": "int4-g64-asym", "language.layers.1.mlp.up": "keep"}
    quantized, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, "awq", **schemes)
    config = json.loads((artifact.path / "config.json").read_text())

    assert config["quantization_config"] == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [
            "vpm",
            "resampler",
            "llm.model.embed_tokens",
            "llm.model.layers.1.mlp.up_proj",
            "llm.lm_head",
        ],
    }
    tensors = load_tensors(artifact)
    kept = "llm.model.layers.1.mlp.up_proj.weight"
    whole = quantized.load("language.layers.1.mlp.up")
    assert isinstance(whole, torch.Tensor)
    assert torch.equal(tensors[kept], whole)
    assert set(module_tensors(tensors, "llm.model.layers.1.mlp.down_proj")) == {"qweight", "qzeros", "scales"}
