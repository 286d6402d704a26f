"""Hugging Face artifacts in the hands of transformers, bitsandbytes and compressed-tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.export import export
from mcpmq.families.family import Inputs
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.quantized_model import Quantized
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.runners.transformers import load, open_runner
from tests.hf_tools import hf_artifact, tensors_in
from tests.loss_tools import losses_of
from tests.reference_model import native_module
from tests.tiny_families import TINY_FAMILIES

# By format and scheme, how far a loss may be from that of the same weights dequantized and computed in float32: readers
# compute in bfloat16, and LLM.int8 rounds its inputs to 8 bits.
CASES = {
    ("compressed-tensors", "int4-g32"): 0.1,
    ("compressed-tensors", "int8-row"): 0.1,
    ("bnb", "nf4"): 0.1,
    ("bnb", "fp4"): 0.1,
    ("bnb", "int8-row"): 0.2,
}
Made = dict[tuple[str, str], tuple[Quantized, Artifact]]


@pytest.fixture(scope="module")
def artifacts(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The tiny checkpoint in every format, the layers of its language model packed."""
    return {
        (name, scheme): hf_artifact(tiny_checkpoint, tmp_path_factory.mktemp(name), name, **{"language.*": scheme})
        for name, scheme in CASES
    }


@pytest.mark.filterwarnings("default")  # bitsandbytes tells that its kernels compute in another type
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_reader_gives_the_losses_of_the_dequantized_model(
    case: tuple[str, str], artifacts: Made, tiny_samples: list[Inputs]
) -> None:
    """With and without images; every token of every answer."""
    quantized, artifact = artifacts[case]
    expected = losses_of(open_torch(quantized.path, 1), tiny_samples)
    found = losses_of(open_runner(artifact.path, 1), tiny_samples)

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=CASES[case])


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-row"])
def test_compressed_tensors_has_the_very_weights(scheme: str, artifacts: Made, tiny_samples: list[Inputs]) -> None:
    """In float32 nothing is left but the order of sums."""
    quantized, artifact = artifacts["compressed-tensors", scheme]
    found = losses_of(load(HuggingFaceArtifact.open(artifact.path), torch.float32), tiny_samples)

    for one, other in zip(found, losses_of(open_torch(quantized.path, 1), tiny_samples), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_reader_packs_what_is_packed_and_generates(case: tuple[str, str], artifacts: Made) -> None:
    """No weight is missing, left over or made up; wide modules are plain; a few tokens come out."""
    _, artifact = artifacts[case]
    model = load(HuggingFaceArtifact.open(artifact.path)).model
    modules = {name: type(module).__name__ for name, module in model.named_modules()}
    with torch.inference_mode():
        tokens = model.generate(input_ids=torch.arange(5)[None], max_new_tokens=3, min_new_tokens=3, do_sample=False)

    assert tokens.shape == (1, 8)
    assert modules["vpm.encoder.layers.0.mlp.fc1"] == modules["llm.lm_head"] == "Linear"
    if case[0] == "bnb":
        assert modules["llm.model.layers.1.mlp.down_proj"] in ("Linear4bit", "Linear8bitLt")


def test_notes_say_who_read_it(artifacts: Made) -> None:
    """The package and its version."""
    notes = {case[0]: open_runner(artifact.path, 1).notes[0] for case, (_, artifact) in artifacts.items()}

    assert notes["compressed-tensors"].startswith("loaded by transformers and compressed-tensors 0.")
    assert notes["bnb"].startswith("loaded by transformers and bitsandbytes 0.")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["qwen2-vl", "minicpm-v-4.6", "minicpm-o-2.6"])
def test_families_are_loaded_by_the_names_that_they_have_in_memory(name: str, tmp_path: Path) -> None:
    """Other names than in the checkpoint, a tied head, layers of two kinds, parts that are handed on: all the same."""
    tiny = next(family for family in TINY_FAMILIES if family.name == name)
    checkpoint = tiny.build(tmp_path / "tiny")
    quantized, artifact = hf_artifact(checkpoint, tmp_path, "compressed-tensors", **{"language.*": "int8-row"})
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        model = load(HuggingFaceArtifact.open(artifact.path), torch.float32).model
        found = model(input_ids=tokens, use_cache=False).logits
        expected = native_module(quantized)(input_ids=tokens, use_cache=False, logits_to_keep=torch.arange(20)).logits

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert tiny.more.keys() <= tensors_in(artifact).keys()

    model = load(HuggingFaceArtifact.open(export(quantized, "bnb", tmp_path / "bnb").path)).model
    kinds = {module: type(part).__name__ for module, part in model.named_modules()}
    packed = [kind for module, kind in kinds.items() if ".layers." in module and module.endswith("mlp.down_proj")]
    assert packed == ["Linear8bitLt"] * quantized.architecture.language.layers
    assert [kind for module, kind in kinds.items() if module.endswith("lm_head")] == ["Linear"]


def test_other_artifacts_are_refused(tiny_int4: Quantized) -> None:
    """What `quantize` wrote is not in a format of Hugging Face yet."""
    with pytest.raises(ArtifactError, match="quantized artifact"):
        open_runner(tiny_int4.path, 1)
