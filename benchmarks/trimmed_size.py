"""Forecast and measure trimmed vocabularies at the published size of Qwen3.5-0.8B, with its 248,044 tokens of text.

    python -m benchmarks.trimmed_size

The weights are random, in bfloat16, and quantized to GGUF by phone-int4, without calibration. Files of every artifact
are compared with the forecast. llama.cpp has one thread, and times are processor times. Texts are source files of
Python's standard library: the number whose tokens do not change, and their length in tokens. A run resumes: measured
rows and the checkpoint are in build/benchmarks/trimmed-size.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.commands import ROOT, STARTER, WORK, provenance, write_result
from benchmarks.engine_time import measure_engine
from benchmarks.published_vocabulary import PACKAGE, write_tokenizer
from benchmarks.real_size import write_random_weights
from benchmarks.source_texts import count_unchanged, encode, source_texts
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression_tables import VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.estimate.forecast import forecast
from mcpmq.evaluate import Settings, encode_samples
from mcpmq.evaluate.inputs import inputs_of
from mcpmq.families.tokenizer import read_tokenizer
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import Plan, make_plan
from mcpmq.recipe import Recipe
from mcpmq.vocabulary import trim_vocabulary
from tests.families.published import PUBLISHED

FOLDER, MULTILINGUAL = WORK / "trimmed-size", ROOT / "benchmarks" / "multilingual"
MODEL, RECIPE, CONTEXT = "Qwen3.5-0.8B", "phone-int4", 4096
TABLES: dict[str, VocabularyTable | None] = {
    "all tokens": None,
    "en, zh": VocabularyTable(languages=["en", "zh"]),
    "en, de, at most 122,880": VocabularyTable(languages=["en", "de"], max_tokens=122_880),
    "zh, ja": VocabularyTable(languages=["zh", "ja"]),
    "en, de": VocabularyTable(languages=["en", "de"]),
}
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
TEXT_STEP = 8  # every eighth file
IMAGE_SIDE, PROMPT_CHARACTERS, ANSWER_CHARACTERS = 256, 1000, 240


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts, and their tokens in the original vocabulary."""

    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]


def main() -> None:
    """Write the checkpoint, convert it with every table, and write the result."""
    checkpoint, samples = _write_checkpoint(FOLDER / "checkpoint"), _write_samples(FOLDER / "samples")
    found = source_texts()[::TEXT_STEP]
    texts = Texts(found, encode(read_tokenizer(checkpoint.path), found))
    rows = [_measured_row(checkpoint, name, samples, texts) for name in TABLES]
    facts = {"model": MODEL, "recipe": RECIPE, "tokenizer": PACKAGE, "texts": len(found), "rows": rows}
    counts = {"characters": sum(map(len, found)), "text_tokens": sum(map(len, texts.tokens))}
    write_result("trimmed-size", provenance("benchmarks.trimmed_size", "tokenizers") | facts | counts)


def _measured_row(checkpoint: Checkpoint, name: str, samples: SampleSet, texts: Texts) -> dict[str, Any]:
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        file.write_text(json.dumps(_row(checkpoint, name, TABLES[name], samples, texts)))
    row: dict[str, Any] = json.loads(file.read_text())
    return row


def _write_checkpoint(folder: Path) -> Checkpoint:
    if (folder / "model.safetensors").is_file():
        return Checkpoint.open(folder)
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(PUBLISHED[MODEL][1], indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1))
    write_random_weights(folder)
    return Checkpoint.open(folder)


def _write_samples(folder: Path) -> SampleSet:
    """Write a question about an image of noise, and one about a text."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    text = " ".join(sample.answer for sample in SampleSet.open(STARTER) if not sample.images)
    prompt, answer = text[:PROMPT_CHARACTERS], text[PROMPT_CHARACTERS:][:ANSWER_CHARACTERS]
    lines = [{"id": "image", "prompt": "?", "answer": answer, "image": "noise.png"}]
    lines += [{"id": "text", "prompt": prompt, "answer": answer}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SampleSet.open(folder)


def _row(
    checkpoint: Checkpoint, name: str, table: VocabularyTable | None, samples: SampleSet, texts: Texts
) -> dict[str, Any]:
    recipe = Recipe.load(RECIPE).model_copy(update={"vocabulary": table})
    with trim_vocabulary(checkpoint, table) as view:
        plan = make_plan(view, recipe)
        shutil.rmtree(FOLDER / "gguf", ignore_errors=True)
        expected, artifact = _files(plan), convert_in_one_pass(plan, "gguf", FOLDER / "gguf")
        written = {file.path: file.nbytes for file in artifact.manifest.files}
        kept = {} if view.vocabulary is None else view.vocabulary.model_dump(exclude={"kept"})
        ids = None if view.vocabulary is None else view.vocabulary.ids.tolist()
        tokenizer = read_tokenizer(view.path)
        row = {
            "kept": name,
            "tokens": view.architecture.language.vocab_size,
            "scripts": kept.get("kept_by_script", {}),
            "forecast_bytes": expected,
            "artifact_bytes": written,
            "is_equal": written == expected,
            **count_unchanged(tokenizer, ids, texts.texts, texts.tokens),
            "tokens_per_character": _languages(tokenizer),
            **_run(checkpoint, artifact, samples),
        }
    shutil.rmtree(FOLDER / "gguf")
    return row


def _files(plan: Plan) -> dict[str, int]:
    """Return the forecast bytes of every file."""
    [estimate] = forecast(plan, ["gguf"], CONTEXT).formats
    return {file.path: file.nbytes for file in estimate.files.files}


def _languages(tokenizer: Tokenizer) -> dict[str, float]:
    """Return the number of tokens of a character in the sentences of every language."""
    counts: dict[str, list[int]] = {}
    for sample in SampleSet.open(MULTILINGUAL):
        tokens = counts.setdefault(sample.id.partition("-")[0], [0, 0])
        tokens[0] += len(encode(tokenizer, [sample.answer])[0])
        tokens[1] += len(sample.answer)
    return {language: tokens / characters for language, (tokens, characters) in counts.items()}


def _run(checkpoint: Checkpoint, artifact: Artifact, samples: SampleSet) -> dict[str, Any]:
    """Return memory and times of llama.cpp."""
    settings = Settings.from_options(threads=1, use_cache=False)
    with (
        encode_samples(checkpoint, samples, settings) as inputs,
        inputs_of(artifact.manifest, inputs, settings) as own,
    ):
        return measure_engine(artifact.path, own.store.folder)


if __name__ == "__main__":
    main()
