"""Evaluation of a trimmed vocabulary: tokens by the map of ids, KL over kept tokens, losses by character."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression_tables import VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Settings, encode_samples
from mcpmq.evaluate.inputs import inputs_of
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from mcpmq.report.compare import compare
from mcpmq.report.tables import report_table
from mcpmq.runners.logprobs import log_softmax
from mcpmq.runners.token_metrics import ReferenceVocabulary, TokenMetrics, kl_divergence, restricted
from mcpmq.vocabulary import trim_vocabulary
from tests.vocabulary.test_vocabulary import logits_of

TABLE = VocabularyTable(max_tokens=288)
FULL = Recipe.load("full").model_copy(update={"vocabulary": TABLE})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> SampleSet:
    """Two samples of kept tokens, one of them with an image, and one with removed tokens."""
    folder = tmp_path_factory.mktemp("samples")
    lines = [
        {"id": "kept", "prompt": "7 + 1 ?", "answer": "8 !"},
        {"id": "removed", "prompt": "7 + 1 ?", "answer": "How many circles"},
        {"id": "image", "prompt": "3 - 1 ?", "answer": "2", "image": str(tiny_set / "1.png")},
    ]
    lines[2]["image"] = "1.png"
    (folder / "1.png").write_bytes((tiny_set / "1.png").read_bytes())
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return SampleSet.open(folder)


@pytest.fixture(scope="module")
def trimmed(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small checkpoint without quantization and with 288 of 320 tokens."""
    with trim_vocabulary(Checkpoint.open(small_checkpoint), TABLE) as view:
        return quantize(make_plan(view, FULL), tmp_path_factory.mktemp("trimmed") / "quantized").artifact


@pytest.fixture(scope="module")
def report(small_checkpoint: Path, trimmed: Artifact, samples: SampleSet) -> Report:
    """The report of the trimmed model."""
    settings = Settings.from_options(threads=1, use_cache=False)
    return compare(Checkpoint.open(small_checkpoint), [trimmed], samples, settings)


def test_the_report_compares_kept_tokens(
    small_checkpoint: Path, trimmed: Artifact, samples: SampleSet, report: Report
) -> None:
    """Without quantization, KL is 0, losses lack the removed probability, and ids are those of the original."""
    kept = trimmed.manifest.vocabulary
    assert kept is not None
    checkpoint = Checkpoint.open(small_checkpoint)
    processor = checkpoint.family.open_processor(checkpoint.path)
    inputs = [processor.encode_turns(one.id, one.turns) for one in samples]
    [result] = report.artifacts
    found = {one.id: one for one in result.measurement.samples}

    for sample, logits in zip(inputs, logits_of(checkpoint, inputs), strict=True):
        metrics = found[sample.id]
        if sample.id == "removed":
            assert metrics.compared == {}
            assert len(metrics.losses) > len(sample.answer_tokens)
            assert metrics.characters == len("How many circles")
            continue
        logprobs = np.stack([log_softmax(row) for row in logits])
        removed = 1 - np.exp(logprobs[:, kept.ids]).sum(1)
        losses = -logprobs[np.arange(len(logits)), sample.answer_tokens] + np.log1p(-removed)
        np.testing.assert_allclose(metrics.losses, losses, atol=1e-5)
        np.testing.assert_allclose(metrics.compared["original"].removed_probability, removed, atol=1e-5)
        assert max(metrics.compared["original"].kl_divergences) < 1e-5
        assert metrics.argmax_ids == tuple(kept.ids[logits[:, kept.ids].argmax(1)])
        assert min(removed) > 0.01


def test_losses_by_character_cover_all_samples(report: Report) -> None:
    """Perplexity by character is of all samples; the numbers of samples and tokens are reported."""
    [result] = report.artifacts
    assert result.vocabulary is not None
    found, before, after = result.vocabulary["text"], report.original.samples, result.measurement.samples
    totals = [sum(sum(one.losses) for one in samples if one.group == "text") for samples in (before, after)]
    characters = len("8 !") + len("How many circles")

    assert (found.samples, found.same_tokens) == (2, 1)
    assert found.answer_tokens > found.original_answer_tokens
    assert found.original_character_perplexity.value == pytest.approx(math.exp(totals[0] / characters), rel=1e-6)
    assert found.character_perplexity.value == pytest.approx(math.exp(totals[1] / characters), rel=1e-6)
    ratio = found.character_perplexity_ratio.value
    assert ratio == pytest.approx(math.exp((totals[1] - totals[0]) / characters), rel=1e-6)
    rows = dict(report_table(report).rows)
    assert rows["  samples with the same tokens"] == ["", "1 of 2"]
    text = report.model_dump_json()
    assert Report.model_validate_json(text).model_dump_json() == text


def test_samples_are_those_of_the_trimmed_processor(
    small_checkpoint: Path, trimmed: Artifact, samples: SampleSet
) -> None:
    """Mapped tokens and pixels are those that the trimmed tokenizer and the processor give."""
    checkpoint, settings = Checkpoint.open(small_checkpoint), Settings.from_options(threads=1)
    processor = checkpoint.family.open_processor(trimmed.path)
    with (
        encode_samples(checkpoint, samples, settings) as inputs,
        inputs_of(trimmed.manifest, inputs, settings) as own,
    ):
        for sample, found in zip(samples, own.store, strict=True):
            expected = processor.encode_turns(sample.id, sample.turns)
            assert found.tokens.tolist() == expected.tokens.tolist()
            assert (found.answer_start, found.slices_per_image) == (expected.answer_start, expected.slices_per_image)
            for one, other in zip(found.slices, expected.slices, strict=True):
                np.testing.assert_array_equal(one, other)
        assert own.vocabulary is not None
        assert own.vocabulary.same_tokens == [True, False, True]


def test_references_are_restricted_to_kept_tokens(tmp_path: Path) -> None:
    """KL is that of the distribution given a kept token; a sample with other tokens is not compared."""
    random = np.random.default_rng(0)
    reference, logits = random.normal(size=(5, 300)) * 4, random.normal(size=(5, 100)).astype(np.float32) * 4
    kept_ids = np.sort(random.choice(300, 100, replace=False))
    sample = _inputs("a", kept_ids[:5])
    writer = TokenMetrics([sample], tmp_path / "logprobs", {})
    writer(sample, reference.astype(np.float32))
    writer.close()
    vocabulary = ReferenceVocabulary(300, kept_ids, np.array([0, -1]), 5)
    vocabulary.save(tmp_path / "vocabulary.npz")
    trimmed, other = _inputs("a", np.arange(5)), _inputs("b", np.arange(5))

    metrics = TokenMetrics(
        [trimmed, other],
        None,
        {"original": tmp_path / "logprobs"},
        ReferenceVocabulary.load(tmp_path / "vocabulary.npz"),
    )
    results = metrics(trimmed, logits)

    p = torch.softmax(torch.from_numpy(reference), 1).numpy()
    q = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    conditional = p[:, kept_ids] / p[:, kept_ids].sum(1, keepdims=True)
    expected = (conditional * np.log(conditional / q)).sum(1)
    np.testing.assert_allclose(results.compared["original"].kl_divergences, expected, atol=1e-4)
    np.testing.assert_allclose(results.compared["original"].removed_probability, 1 - p[:, kept_ids].sum(1), atol=1e-5)
    assert results.argmax_ids == kept_ids[logits.argmax(1)].tolist()
    assert metrics(other, logits).compared["original"].kl_divergences == []
    metrics.close()
    restricted_logprobs, probability = restricted(np.log(p[0]), kept_ids)
    assert np.exp(restricted_logprobs).sum() == pytest.approx(1)
    assert probability == pytest.approx(p[0, kept_ids].sum())
    assert kl_divergence(restricted_logprobs, restricted_logprobs) == 0


def _inputs(sample_id: str, answer: NDArray[np.int64]) -> Inputs:
    return Inputs(sample_id, np.concatenate([[1], answer]), 1, (), np.empty((0, 2), np.int64))


def test_a_trimmed_baseline_is_an_error(
    small_checkpoint: Path, trimmed: Artifact, samples: SampleSet, tmp_path: Path
) -> None:
    """An engine baseline has all tokens."""
    artifact = export(QuantizedModel.open(trimmed.path), "gguf", tmp_path / "gguf")
    with pytest.raises(ArtifactError, match="the engine baseline .* has 288 of 320 tokens"):
        compare(
            Checkpoint.open(small_checkpoint),
            [artifact],
            samples,
            Settings.from_options(threads=1),
            engine_baselines=[artifact],
        )
