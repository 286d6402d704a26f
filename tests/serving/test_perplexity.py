"""The example that computes the perplexity of a served model, against the runner of evaluations."""

import math
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
from scipy.special import log_softmax
from tokenizers import Tokenizer

from mcpmq.artifact import Artifact
from mcpmq.dataset import Sample
from mcpmq.families import family_named
from mcpmq.families.inputs import Inputs
from mcpmq.runners.gguf import open_runner
from mcpmq.runners.runner import Logits
from tests.serving.conftest import HELD_OUT, ROOT, serving


@pytest.fixture(scope="module")
def example() -> Any:
    """The module of the example."""
    spec = spec_from_file_location("perplexity", ROOT / "examples" / "perplexity.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _losses(sample: Inputs, logits: Iterable[Logits]) -> list[float]:
    answer = sample.tokens[sample.answer_start :]
    return [-float(log_softmax(row)[token]) for row, token in zip(logits, answer, strict=True)]


def test_perplexity_from_outside_is_that_of_evaluations(
    example: Any, reference_gguf: Artifact, held_out: list[Sample]
) -> None:
    """For two square images and a text, the losses of the server are those of the runner within one percent."""
    source = ROOT / "calibration" / "reference"
    processor = family_named(reference_gguf.manifest.family).open_processor(source)
    chosen = [sample for sample in held_out if "nonsquare" not in sample.tags]
    inputs = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in chosen]
    runner = open_runner(reference_gguf.path, 1)
    expected = [loss for losses in runner.run(inputs, _losses) for loss in losses]
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    raw = {line["id"]: line for group in ("image", "text") for line in example.samples(HELD_OUT, group)}

    with serving(reference_gguf) as served:
        url = str(served.client.base_url)
        found = [loss for one in chosen for loss in example.losses(url, tokenizer, raw[one.id], HELD_OUT)]

    assert len(found) == len(expected)
    assert math.isclose(example.perplexity(found), example.perplexity(expected), rel_tol=0.01)
