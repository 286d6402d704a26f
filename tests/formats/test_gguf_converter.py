"""GGUF files have the names, shapes, keys and values of the files of llama.cpp's own converter.

llama_cpp_converter.json records the converter's output for the tiny checkpoints: every key, and for every tensor its
shape, the sum of its values, and their sum weighted from 0 for the first to 1 for the last.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from tests.gguf_tools import export_gguf, gguf_reader, metadata_value, tensor_values
from tests.tiny_families import TINY_FAMILIES

RECORD = json.loads((Path(__file__).parent / "llama_cpp_converter.json").read_text())
# Keys that mcpmq does not write, or writes with the correct value; llama.cpp does not read them.
EXPECTED_DIFFERENCES = {
    "qwen2-vl": {"clip.vision.feed_forward_length"},  # the converter writes a size of the language model
    # The list of recurrent layers replaces the first; for the second, the converter has constants of published sizes.
    "minicpm-v-4.6": {"qwen35.full_attention_interval", "qwen35.rope.dimension_sections"},
}


@pytest.mark.parametrize("name", RECORD)
def test_files_match_those_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    """All keys and tensors of the converter are present with equal values."""
    tiny = next(family for family in TINY_FAMILIES if family.name == name and not family.variant)
    plan = make_plan(Checkpoint.open(tiny.build(tmp_path / "tiny")), Recipe.load("full"))
    artifact = export_gguf(quantize(plan, tmp_path / "full"), tmp_path)

    for component, recorded in RECORD[name].items():
        reader = gguf_reader(artifact, component)
        for key, value in recorded["keys"].items():
            if key not in EXPECTED_DIFFERENCES.get(name, ()):
                assert metadata_value(reader, key) == approx_float32(value), key
        assert {tensor.name for tensor in reader.tensors} == recorded["tensors"].keys()
        for tensor, (shape, total, weighted) in recorded["tensors"].items():
            ours = tensor_values(reader, tensor).astype(np.float64)
            assert list(reversed(ours.shape)) == shape, tensor
            tolerance = 1e-2 + 2e-3 * np.sqrt(ours.size)  # the converter writes 16-bit floats
            assert abs(ours.sum() - total) < tolerance, tensor
            assert abs((ours.ravel() * np.linspace(0, 1, ours.size)).sum() - weighted) < tolerance, tensor


def approx_float32(value: Any) -> Any:
    """Compare floats with the precision of float32."""
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
