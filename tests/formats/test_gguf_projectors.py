"""Projectors that the pinned llama.cpp does not have."""

from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import EngineError
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.gguf import open_runner
from tests.checkpoint_tools import build_family


def test_llama_cpp_has_no_projector_of_minicpm_v_4_7(tmp_path: Path) -> None:
    """The reason for which the family has no GGUF: if this fails, the pinned version has the projector."""
    checkpoint = Checkpoint.open(build_family("minicpm-v-4.6", tmp_path / "tiny"))
    quantized = quantize(make_plan(checkpoint, Recipe.load("full")), tmp_path / "codes")
    artifact = export(quantized, "gguf", tmp_path / "gguf")
    [file] = artifact.component_files("vision+projector")
    content = file.read_bytes()
    assert content.count(b"minicpmv4_6") == 1
    file.write_bytes(content.replace(b"minicpmv4_6", b"minicpmv4_7"))

    with pytest.raises(EngineError, match="unknown projector type: minicpmv4_7"):
        open_runner(artifact.path, 1)
