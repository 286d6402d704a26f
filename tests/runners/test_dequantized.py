"""GPTQ and AWQ artifacts, unpacked by mcpmq: exactly the losses of the codes they were made from."""

from pathlib import Path

import numpy as np
import pytest

from mcpmq.errors import ArtifactError
from mcpmq.families.family import Inputs
from mcpmq.quantized_model import Quantized
from mcpmq.runners.dequantized import open_runner
from mcpmq.runners.torch import open_runner as open_torch
from tests.hf_tools import hf_artifact
from tests.loss_tools import losses_of


@pytest.mark.parametrize(
    ("name", "scheme"), [("gptq", "int4-g128"), ("gptq", "int8-row-asym"), ("awq", "int4-g64-asym")]
)
def test_losses_are_those_of_the_codes(
    name: str, scheme: str, tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path
) -> None:
    """With and without images, every token of every answer; the notes say who unpacked them."""
    quantized, artifact = hf_artifact(tiny_checkpoint, tmp_path, name, **{"language.*": scheme})
    runner = open_runner(artifact.path, 1)
    assert runner.notes[0] == f"{name} unpacked by mcpmq, computed in float32"

    expected = losses_of(open_torch(quantized.path, 1), tiny_samples)
    for one, other in zip(losses_of(runner, tiny_samples), expected, strict=True):
        assert np.array_equal(one, other)


def test_other_artifacts_are_refused(tiny_int4: Quantized) -> None:
    """What `quantize` wrote is not in a format of Hugging Face yet."""
    with pytest.raises(ArtifactError, match="quantized artifact"):
        open_runner(tiny_int4.path, 1)
