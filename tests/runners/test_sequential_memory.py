"""Vision first, then language: the same answers, and figures from a process of its own."""

from pathlib import Path

import numpy as np
import pytest

from mcpmq.artifact import Artifact
from mcpmq.errors import EngineError
from mcpmq.export import export
from mcpmq.families.family import Inputs
from mcpmq.quantized_model import Quantized
from mcpmq.runners import gguf, onnx
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.sequential_memory import heaviest, measure_in_turn

ENGINES = {"gguf": gguf, "onnx": onnx}


@pytest.fixture(scope="module", params=list(ENGINES))
def artifact(
    request: pytest.FixtureRequest, tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """phone-int4 of the tiny model, in either format."""
    return export(tiny_int4, request.param, tmp_path_factory.mktemp("turns") / request.param)


def _logits(sample: Inputs, rows: object) -> np.ndarray:
    return np.stack([row.copy() for row in rows])  # type: ignore[attr-defined]


def test_what_is_recalled_gives_the_same_logits(artifact: Artifact, tiny_samples: list[Inputs]) -> None:
    """To the bit, sample by sample, however many slices each has."""
    engine = ENGINES[artifact.manifest.kind]
    whole = engine.open_runner(artifact.path, 1)  # type: ignore[attr-defined]
    seen = engine.see_all(artifact.path, 1, tiny_samples)  # type: ignore[attr-defined]
    reader = engine.open_reader(artifact.path, 1, seen)  # type: ignore[attr-defined]

    assert len(seen) == sum(len(sample.slices) for sample in tiny_samples) > 1
    pairs = zip(whole.run(tiny_samples, _logits), reader.run(tiny_samples, _logits), strict=True)
    for one, other in pairs:
        assert np.array_equal(one, other)


def test_a_fresh_process_tells_both_peaks(artifact: Artifact, tiny_samples: list[Inputs], tmp_path: Path) -> None:
    """While it saw, and in all, which is never less; an engine alone takes more than ten megabytes."""
    files = SampleFiles(tmp_path)
    for sample in tiny_samples:
        files.append(sample)
    peaks = measure_in_turn(artifact.manifest.kind, artifact.path, files, 1)

    assert 10e6 < peaks.seeing_bytes <= peaks.resident_bytes < 2e9


def test_an_error_in_the_process_is_told(tiny_full: Quantized, tiny_samples: list[Inputs], tmp_path: Path) -> None:
    """With the engine's own words."""
    files = SampleFiles(tmp_path)
    files.append(tiny_samples[0])
    with pytest.raises(EngineError, match="onnx: .*quantized artifact"):
        measure_in_turn("onnx", tiny_full.path, files, 1)


def test_the_heaviest_samples_are_those_of_most_tokens_and_slices(tiny_samples: list[Inputs]) -> None:
    """Every extreme is among them, and nothing twice."""
    found = heaviest(tiny_samples)

    assert len({one.id for one in found}) == len(found) <= 3
    assert max(len(one.tokens) for one in found) == max(len(one.tokens) for one in tiny_samples)
    assert max(len(one.slices) for one in found) == max(len(one.slices) for one in tiny_samples)
