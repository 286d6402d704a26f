"""Greedy answers of the original are cached like its measurement."""

from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import Settings
from mcpmq.report import compare, greedy_answers
from mcpmq.report.report import WorstSample
from mcpmq.runners import launcher

FILE = greedy_answers.ANSWERS_FILE


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that have generated answers."""
    found: list[str] = []
    generate = launcher.generate_answers

    def record(engine: Any, *arguments: Any) -> Any:
        found.append(engine)
        return generate(engine, *arguments)

    monkeypatch.setattr(greedy_answers, "generate_answers", record)
    return found


def worst(checkpoint: Path, artifact: Artifact, samples: SampleSet, cache: Path | None) -> tuple[WorstSample, ...]:
    """Return the worst samples of an evaluation."""
    settings = Settings(threads=1, cache_folder=cache, generate_answers=True)
    return compare(Checkpoint.open(checkpoint), [artifact], samples, settings).artifacts[0].worst_samples


def test_the_original_answers_once(
    tiny_checkpoint: Path, tiny_exports: list[Artifact], mixed_set: SampleSet, tmp_path: Path, engines: list[str]
) -> None:
    """The second evaluation has the same answers and generates those of the artifact; a damaged entry is not used."""
    first = worst(tiny_checkpoint, tiny_exports[0], mixed_set, tmp_path)
    assert first
    assert engines == ["torch", "gguf"]

    assert worst(tiny_checkpoint, tiny_exports[0], mixed_set, tmp_path) == first
    assert engines[2:] == ["gguf"]

    [entry] = tmp_path.glob(f"*/{FILE}")
    entry.write_text("{")
    assert worst(tiny_checkpoint, tiny_exports[0], mixed_set, tmp_path) == first
    assert engines[3:] == ["torch", "gguf"]


def test_without_a_cache_the_original_answers_again(
    tiny_checkpoint: Path, tiny_exports: list[Artifact], mixed_set: SampleSet, engines: list[str]
) -> None:
    """Nothing is written."""
    assert worst(tiny_checkpoint, tiny_exports[0], mixed_set, None)
    assert engines == ["torch", "gguf"]
