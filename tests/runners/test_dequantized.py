"""GPTQ and AWQ artifacts, unpacked by mcpmq and run in PyTorch."""

from pathlib import Path

import numpy as np
import pytest

from mcpmq.errors import ArtifactError
from mcpmq.families.inputs import Inputs
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.dequantized import open_runner
from mcpmq.runners.torch import open_runner as open_torch
from tests.hf_tools import export_hf_artifact
from tests.loss_tools import answer_losses


@pytest.mark.parametrize(
    ("name", "scheme"), [("gptq", "int4-g128"), ("gptq", "int8-row-asym"), ("awq", "int4-g64-asym")]
)
def test_losses_equal_those_of_the_quantized_model(
    name: str, scheme: str, tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """Losses of text and image samples are bit-identical, and the notes name the format."""
    quantized, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, name, **{"language.*": scheme})
    runner = open_runner(artifact.path, 1)
    assert runner.notes[0] == f"{name} unpacked by mcpmq"

    expected = answer_losses(open_torch(quantized.path, 1), tiny_samples)
    for one, other in zip(answer_losses(runner, tiny_samples), expected, strict=True):
        assert np.array_equal(one, other)


def test_an_artifact_of_another_format_is_an_error(tiny_int4: QuantizedModel) -> None:
    """A quantized model is not a Hugging Face artifact."""
    with pytest.raises(ArtifactError, match="quantized artifact"):
        open_runner(tiny_int4.path, 1)
