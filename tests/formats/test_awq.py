"""AWQ's words, against the layout's definition spelled out, and what config.json says of them."""

import json
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.awq import GROUP_SIZES
from mcpmq.formats.awq.packing import pack, unpack
from mcpmq.grids import dequantize
from mcpmq.scheme import IntegerScheme
from tests.hf_tools import code_in, hf_artifact, parts_in, same_weight, tensors_in
from tests.onnx_tools import random_weight

SCHEMES = [IntegerScheme(4, group, symmetric) for group in GROUP_SIZES for symmetric in (True, False)]
PLACE_OF_OUTPUT = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 3), st.integers(1, 3))
def test_words_mean_the_weight(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """Read back by the definition: even outputs of a word first, then the odd ones."""
    assert scheme.group_size
    rows, columns = 8 * rows, scheme.group_size * groups
    weight = random_weight(scheme, rows, columns)
    parts = pack(weight, "bfloat16")
    values = torch.empty(rows, columns)
    for row in range(0, rows, 3):
        place = row // 8 * 8 + PLACE_OF_OUTPUT[row % 8]
        for column in range(columns):
            group = column // scheme.group_size
            code, zero = (code_in(words, place, 4) for words in (parts["qweight"][column], parts["qzeros"][group]))
            values[row, column] = (code - zero) * parts["scales"][group, row].float()

    assert torch.equal(values[::3], dequantize(weight)[::3])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 5))
def test_unpacking_gives_the_very_weight(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """Codes, scales and zeros, bit for bit."""
    assert scheme.group_size
    weight = random_weight(scheme, 8 * rows, scheme.group_size * groups)

    assert same_weight(unpack(pack(weight, "float16"), scheme), weight)


def test_config_says_how_to_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A kept layer is named among the wide modules, by itself."""
    schemes = {"language.*": "int4-g64-asym", "language.layers.1.mlp.up": "keep"}
    quantized, artifact = hf_artifact(tiny_checkpoint, tmp_path, "awq", **schemes)
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
    tensors = tensors_in(artifact)
    kept = "llm.model.layers.1.mlp.up_proj.weight"
    whole = quantized.load("language.layers.1.mlp.up")
    assert isinstance(whole, torch.Tensor)
    assert torch.equal(tensors[kept], whole)
    assert set(parts_in(tensors, "llm.model.layers.1.mlp.down_proj")) == {"qweight", "qzeros", "scales"}
