"""Our files beside those of llama.cpp's own converter: the same names, shapes, keys and values.

What its converter made of the tiny checkpoints is on record in llama_cpp_converter.json: every key, and of every tensor
its shape, the sum of its values, and their sum weighted from 0 for the first to 1 for the last.
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
from tests.gguf_tools import exported, field, reader_of, values
from tests.tiny_families import TINY_FAMILIES

RECORD = json.loads((Path(__file__).parent / "llama_cpp_converter.json").read_text())
# Keys that we do not write, or of which we write what is true: llama.cpp reads neither.
OTHERWISE = {
    "qwen2-vl": {"clip.vision.feed_forward_length"},  # its converter takes a width of the language model for it
    # The list of recurrent layers says more than the first; of the second its converter knows the published sizes only.
    "minicpm-v-4.6": {"qwen35.full_attention_interval", "qwen35.rope.dimension_sections"},
}


@pytest.mark.parametrize("name", RECORD)
def test_files_are_those_of_llama_cpp_s_converter(name: str, tmp_path: Path) -> None:
    """Nothing is missing; what is more is ours: lengths of heads, and the vocabulary's size."""
    tiny = next(family for family in TINY_FAMILIES if family.name == name and not family.variant)
    plan = make_plan(Checkpoint.open(tiny.build(tmp_path / "tiny")), Recipe.load("full"))
    artifact = exported(quantize(plan, tmp_path / "full"), tmp_path)

    for component, recorded in RECORD[name].items():
        reader = reader_of(artifact, component)
        for key, value in recorded["keys"].items():
            if key not in OTHERWISE.get(name, ()):
                assert field(reader, key) == approximately(value), key
        assert {tensor.name for tensor in reader.tensors} == recorded["tensors"].keys()
        for tensor, (shape, total, weighted) in recorded["tensors"].items():
            ours = values(reader, tensor).astype(np.float64)
            assert list(reversed(ours.shape)) == shape, tensor
            tolerance = 1e-2 + 2e-3 * np.sqrt(ours.size)  # its floats have 16 bits
            assert abs(ours.sum() - total) < tolerance, tensor
            assert abs((ours.ravel() * np.linspace(0, 1, ours.size)).sum() - weighted) < tolerance, tensor


def approximately(value: Any) -> Any:
    """Numbers of 32 bits as the record has them."""
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
