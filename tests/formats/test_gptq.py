"""GPTQ's words, against the layout's definition spelled out, and what config.json says of them."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.gptq import GROUP_SIZES, checkpoint_format
from mcpmq.formats.gptq.packing import pack, unpack
from mcpmq.grids import dequantize
from mcpmq.scheme import IntegerScheme
from tests.hf_tools import code_in, hf_artifact, parts_in, same_weight, tensors_in
from tests.onnx_tools import random_weight

SCHEMES = [IntegerScheme(bits, group, even) for bits in (4, 8) for group in GROUP_SIZES for even in (True, False)]
MODULE = "llm.model.layers.0.mlp.down_proj"


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 3), st.integers(1, 3))
def test_words_mean_the_weight(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """Read back by the definition: value = (code - zero) * scale, the zero one higher than it says in `gptq`."""
    rows, columns = 8 * rows, (scheme.group_size or 16) * groups
    weight = random_weight(scheme, rows, columns)
    parts, bits = pack(weight, "bfloat16"), scheme.bits
    below = 1 if checkpoint_format(scheme) == "gptq" else 0
    values = torch.empty(rows, columns)
    for row in range(0, rows, 3):
        for column in range(columns):
            group = int(parts["g_idx"][column])
            zero = (code_in(parts["qzeros"][group], row, bits) + below) % (1 << bits)
            code = code_in(parts["qweight"][:, row], column, bits)
            values[row, column] = (code - zero) * parts["scales"][group, row].float()

    assert torch.equal(values[::3], dequantize(weight)[::3])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 9), st.integers(1, 5))
def test_unpacking_gives_the_very_weight(scheme: IntegerScheme, rows: int, groups: int) -> None:
    """Codes, scales and zeros, bit for bit."""
    weight = random_weight(scheme, 8 * rows, (scheme.group_size or 8) * groups)

    assert same_weight(unpack(pack(weight, "float16"), scheme), weight)


def test_a_zero_of_nothing_has_its_convention() -> None:
    """In `gptq` it would be stored as -1 and borrow from its neighbour, so asymmetric grids are `gptq_v2`."""
    scheme = IntegerScheme(4, None, symmetric=False)
    weight = random_weight(scheme, 8, 16)
    assert weight.zero is not None
    weight.zero[:] = 0

    assert checkpoint_format(scheme) == "gptq_v2"
    assert pack(weight, "float32")["qzeros"].tolist() == [[0]]
    assert pack(random_weight(IntegerScheme(4, None), 8, 16), "float32")["qzeros"].tolist() == [[0x77777777]]


def test_what_layers_keep_is_told_in_the_words_of_every_reader(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By pattern for vLLM and gptqmodel, by what is packed in a layer for transformers."""
    schemes = {"language.*": "int4-g64", "language.*.mlp.*": "keep"}
    _, artifact = hf_artifact(tiny_checkpoint, tmp_path, "gptq", **schemes)
    said = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]

    assert said["block_name_to_quantize"] == "llm.model.layers"
    assert said["modules_in_block_to_quantize"] == [attention]
    assert any(re.match(pattern[2:], "llm.model.layers.1.mlp.up_proj") for pattern in said["dynamic"])
    assert not any(re.match(pattern[2:], "llm.model.layers.1.self_attn.q_proj") for pattern in said["dynamic"])


@pytest.mark.parametrize(
    ("scheme", "bits", "group_size", "sym"), [("int4-g64", 4, 64, True), ("int8-row-asym", 8, -1, False)]
)
def test_config_says_how_to_read(
    scheme: str, bits: int, group_size: int, sym: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Bits, groups and convention, which modules are wide, and the same again for old loaders."""
    quantized, artifact = hf_artifact(tiny_checkpoint, tmp_path, "gptq", **{"language.*": scheme})
    config = json.loads((artifact.path / "config.json").read_text())
    said = config.pop("quantization_config")

    assert config == quantized.config
    assert json.loads((artifact.path / "quantize_config.json").read_text()) == said
    assert (said["bits"], said["group_size"], said["sym"], said["desc_act"]) == (bits, group_size, sym, False)
    assert said["modules_to_not_convert"] == ["vpm", "resampler", "llm.model.embed_tokens", "llm.lm_head"]
    parts = parts_in(tensors_in(artifact), MODULE)
    assert set(parts) == {"qweight", "qzeros", "scales", "g_idx"}
    parsed = quantized.scheme("language.layers.0.mlp.down")
    assert isinstance(parsed, IntegerScheme)
    assert same_weight(unpack(parts, parsed), quantized.load("language.layers.0.mlp.down"))
