"""Hugging Face artifacts loaded by transformers, bitsandbytes and compressed-tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.runners.transformers import load_artifact, open_runner
from tests.hf_tools import export_hf_artifact, load_tensors
from tests.loss_tools import answer_losses
from tests.reference_model import reference_model
from tests.tiny_families import TINY_FAMILIES

# Tolerance of a loss by format and scheme, against dequantized weights in float32: the loading packages compute in
# bfloat16, and LLM.int8 rounds its inputs to 8 bits.
CASES = {
    ("compressed-tensors", "int4-g32"): 0.1,
    ("compressed-tensors", "int8-row"): 0.1,
    ("bnb", "nf4"): 0.1,
    ("bnb", "fp4"): 0.1,
    ("bnb", "int8-row"): 0.2,
}
Artifacts = dict[tuple[str, str], tuple[QuantizedModel, Artifact]]


@pytest.fixture(scope="module")
def artifacts(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The tiny checkpoint in every format, with a quantized language model."""
    return {
        (name, scheme): export_hf_artifact(
            tiny_checkpoint, tmp_path_factory.mktemp(name), name, **{"language.*": scheme}
        )
        for name, scheme in CASES
    }


@pytest.mark.filterwarnings("default")  # bitsandbytes warns that its kernels compute in another dtype
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_losses_are_close_to_those_of_the_dequantized_model(
    case: tuple[str, str], artifacts: Artifacts, tiny_samples: list[Inputs]
) -> None:
    """Losses of text and image samples differ by at most the tolerance of the format."""
    quantized, artifact = artifacts[case]
    expected = answer_losses(open_torch(quantized.path, 1), tiny_samples)
    found = answer_losses(open_runner(artifact.path, 1), tiny_samples)

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=CASES[case])


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-row"])
def test_compressed_tensors_in_float32_equals_the_dequantized_model(
    scheme: str, artifacts: Artifacts, tiny_samples: list[Inputs]
) -> None:
    """In float32 only the order of additions differs."""
    quantized, artifact = artifacts["compressed-tensors", scheme]
    found = answer_losses(load_artifact(HuggingFaceArtifact.open(artifact.path), torch.float32), tiny_samples)

    for one, other in zip(found, answer_losses(open_torch(quantized.path, 1), tiny_samples), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_quantized_layers_stay_packed_and_the_model_generates(case: tuple[str, str], artifacts: Artifacts) -> None:
    """Quantized modules have the class of the loading package, others stay `Linear`, and generation returns tokens."""
    _, artifact = artifacts[case]
    model: Any = load_artifact(HuggingFaceArtifact.open(artifact.path)).model
    modules = {name: type(module).__name__ for name, module in model.named_modules()}
    with torch.inference_mode():
        tokens = model.generate(input_ids=torch.arange(5)[None], max_new_tokens=3, min_new_tokens=3, do_sample=False)

    assert tokens.shape == (1, 8)
    assert modules["vpm.encoder.layers.0.mlp.fc1"] == modules["llm.lm_head"] == "Linear"
    if case[0] == "bnb":
        assert modules["llm.model.layers.1.mlp.down_proj"] in ("Linear4bit", "Linear8bitLt")


def test_notes_name_the_loading_package(artifacts: Artifacts) -> None:
    """The note has the package and its version."""
    notes = {case[0]: open_runner(artifact.path, 1).notes[0] for case, (_, artifact) in artifacts.items()}

    assert notes["compressed-tensors"].startswith("loaded by transformers and compressed-tensors 0.")
    assert notes["bnb"].startswith("loaded by transformers and bitsandbytes 0.")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["qwen2-vl", "minicpm-v-4.6", "minicpm-o-2.6"])
def test_families_whose_module_names_differ_from_the_checkpoint_are_loaded(name: str, tmp_path: Path) -> None:
    """Renamed modules, a tied head, two kinds of layers and passthrough tensors do not change the logits."""
    tiny = next(family for family in TINY_FAMILIES if family.name == name)
    checkpoint = tiny.build(tmp_path / "tiny")
    quantized, artifact = export_hf_artifact(checkpoint, tmp_path, "compressed-tensors", **{"language.*": "int8-row"})
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        model = load_artifact(HuggingFaceArtifact.open(artifact.path), torch.float32).model
        found = model(input_ids=tokens, use_cache=False).logits
        expected = reference_model(quantized)(input_ids=tokens, use_cache=False, logits_to_keep=torch.arange(20)).logits

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert tiny.extra_tensors.keys() <= load_tensors(artifact).keys()

    model = load_artifact(HuggingFaceArtifact.open(export(quantized, "bnb", tmp_path / "bnb").path)).model
    classes = {module: type(part).__name__ for module, part in model.named_modules()}
    packed = [name for module, name in classes.items() if ".layers." in module and module.endswith("mlp.down_proj")]
    assert packed == ["Linear8bitLt"] * quantized.architecture.language.num_layers
    assert [name for module, name in classes.items() if module.endswith("lm_head")] == ["Linear"]


def test_an_artifact_of_another_format_is_an_error(tiny_int4: QuantizedModel) -> None:
    """A quantized model is not a Hugging Face artifact."""
    with pytest.raises(ArtifactError, match="quantized artifact"):
        open_runner(tiny_int4.path, 1)
