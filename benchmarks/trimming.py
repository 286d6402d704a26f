"""Measure trimmed vocabularies of the reference checkpoint: accuracy, tokens of large texts, and other languages.

    python -m benchmarks.trimming

Every artifact keeps the most frequent tokens of the calibration set, up to a number, in 8 bits. Texts are source files
of Python's standard library. Sentences of `benchmarks/multilingual` are measured by language and by character.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import HELDOUT, REFERENCE, ROOT, STARTER, WORK, provenance, run_command, write_result
from benchmarks.source_texts import count_unchanged, encode, source_texts
from benchmarks.structured import artifact_row, evaluate_artifacts
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compressed_view
from mcpmq.evaluate import ORIGINAL, vocabulary_differences
from mcpmq.evaluate.schema import SampleMetrics
from mcpmq.families.tokenizer import read_tokenizer
from mcpmq.report import Report
from mcpmq.report.report import ArtifactResult

FOLDER, MULTILINGUAL = WORK / "trimming", ROOT / "benchmarks" / "multilingual"
RECIPE, LIMITS = "phone-int8", (None, 896, 768, 640, 512)  # None: all tokens
SAMPLES, TEXT_STEP = 100, 16  # of the held-out set; every sixteenth file


def main() -> None:
    """Write, evaluate and compare the artifacts."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    artifacts = [_quantize(limit) for limit in LIMITS]
    heldout = evaluate_artifacts(artifacts, HELDOUT, FOLDER / "heldout", "--samples", SAMPLES)
    multilingual = evaluate_artifacts(artifacts, MULTILINGUAL, FOLDER / "multilingual")
    texts = source_texts()[::TEXT_STEP]
    before = encode(read_tokenizer(REFERENCE), texts)
    rows = [
        {
            "max_tokens": limit,
            **artifact_row(result),
            "vocabulary": {name: one.model_dump(mode="json") for name, one in (result.vocabulary or {}).items()},
            **_texts(path, texts, before),
            "languages": _languages(multilingual, by_language),
        }
        for limit, path, result, by_language in zip(
            LIMITS, artifacts, heldout.artifacts, multilingual.artifacts, strict=True
        )
    ]
    facts = {"texts": len(texts), "characters": sum(map(len, texts)), "text_tokens": sum(map(len, before))}
    facts |= {"samples": len(heldout.original.samples), "sentences": len(multilingual.original.samples)}
    write_result("trimming", provenance("benchmarks.trimming", "tokenizers") | facts | {"rows": rows})


def _quantize(limit: int | None) -> Path:
    folder = FOLDER / str(limit)
    trim = () if limit is None else ("--trim-vocabulary", f"calibration,{limit}", "--calibration", STARTER)
    run_command("quantize", REFERENCE, folder, "--recipe", RECIPE, "--format", "gguf", *trim, out=folder)
    return folder


def _texts(path: Path, texts: Sequence[str], before: Sequence[Sequence[int]]) -> dict[str, int]:
    """Return the numbers of tokens of the vocabulary and of the texts, and that of texts with the original's tokens."""
    checkpoint, manifest = Checkpoint.open(REFERENCE), Artifact.open(path).manifest
    with compressed_view(checkpoint, manifest) as view:
        ids = None if manifest.vocabulary is None else manifest.vocabulary.ids.tolist()
        tokens = view.architecture.language.vocab_size
        return {"tokens": tokens, **count_unchanged(read_tokenizer(view.path), ids, texts, before)}


def _languages(report: Report, result: ArtifactResult) -> dict[str, Any]:
    """Return answer tokens and, with a trimmed vocabulary, perplexities by character of every language."""
    before, after = report.original.samples, result.measurement.samples
    return {language: _language(*(_of(language, one) for one in (before, after))) for language in _names(before)}


def _names(samples: Sequence[SampleMetrics]) -> list[str]:
    return list(dict.fromkeys(one.id.partition("-")[0] for one in samples))


def _of(language: str, samples: Sequence[SampleMetrics]) -> list[SampleMetrics]:
    return [one for one in samples if one.id.partition("-")[0] == language]


def _language(before: Sequence[SampleMetrics], after: Sequence[SampleMetrics]) -> dict[str, Any]:
    tokens = {"answer_tokens": sum(len(one.losses) for one in after)}
    if after[0].characters is None:
        return tokens
    [difference] = vocabulary_differences(before, after, ORIGINAL).values()
    characters = sum(one.characters or 0 for one in after)
    return {**tokens, "characters": characters, **difference.model_dump(mode="json")}


if __name__ == "__main__":
    main()
