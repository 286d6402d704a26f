"""Greedy answers of an original and of artifacts to the prompts of samples, with few forward passes."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.evaluate import EncodedInputs, Measurement, Settings, cache, inputs_of
from mcpmq.evaluate.measure import artifact_options, original_key, original_options
from mcpmq.families.inputs import Inputs
from mcpmq.formats import engine_of
from mcpmq.formats.format import Engine
from mcpmq.runners.greedy import Budget, GreedyAnswer
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import NO_OPTIONS, generate_answers
from mcpmq.runners.runner import EngineOptions
from mcpmq.system.temporary_folder import temporary_folder

# Share of the tokens and pixels of the evaluation that the passes of a model for its answers may have.
MAX_COST_SHARE = 0.02
MIN_TOKENS, SMALL_MODEL_WEIGHTS = 1 << 14, 20_000_000  # of larger models fewer tokens, at the same cost
ANSWERS_FILE = "answers.json"
Answers = dict[str, GreedyAnswer]  # by sample id
_Model = tuple[Engine, Path, list[str], EngineOptions]  # with the ids of the samples that it answers


@dataclass(frozen=True, slots=True)
class GreedyAnswers:
    """The greedy answers of an original and an artifact to the prompts of samples, by sample id."""

    original: Mapping[str, GreedyAnswer]
    artifact: Mapping[str, GreedyAnswer]


def generate_greedy_answers(
    checkpoint: Checkpoint,
    original: Measurement,
    measured: Sequence[tuple[Artifact, Measurement, list[str]]],
    inputs: EncodedInputs,
    settings: Settings,
) -> list[GreedyAnswers]:
    """Return the greedy answers of both models to some samples of every artifact, given by their ids.

    Those of the original are cached like its measurement.

    Raises:
        EngineError: an engine failed.
    """
    ids = dict.fromkeys(sample_id for *_, several in measured for sample_id in several)
    if not ids or not settings.generate_answers:
        return [GreedyAnswers({}, {}) for _ in measured]
    with temporary_folder() as folder:
        encoded = {one.id: one for one in inputs.store if one.id in ids}
        budget = _budget(checkpoint, inputs.store)
        answers = partial(_answers, folder, encoded, _predicted(original), settings.threads, budget)
        model: _Model = "torch", checkpoint.path, list(ids), original_options(checkpoint)
        name = _cache_name(original_key(checkpoint, inputs, settings), list(ids), budget)
        originals = _cached(settings.cache_folder, name, lambda: answers("original", *model))
        return [
            GreedyAnswers(
                originals, _artifact_answers(artifact, folder / f"{number}", inputs, found, one, settings, budget)
            )
            for number, (artifact, found, one) in enumerate(measured)
        ]


def _artifact_answers(
    artifact: Artifact,
    folder: Path,
    inputs: EncodedInputs,
    measured: Measurement,
    ids: list[str],
    settings: Settings,
    budget: Budget,
) -> dict[str, GreedyAnswer]:
    """Return the answers of an artifact to its own encoding of the samples, in the tokens of the original."""
    engine, kept = engine_of(artifact.manifest.kind), artifact.manifest.vocabulary
    model = engine, artifact.path, ids, artifact_options(engine, settings)
    predicted = _predicted(measured)
    if kept is not None:
        predicted = {name: kept.new_ids[list(tokens)].tolist() for name, tokens in predicted.items()}
    with inputs_of(artifact.manifest, inputs, settings, ids) as own:
        encoded = {one.id: one for one in own.store if one.id in ids}
        answers = _answers(folder.parent, encoded, predicted, settings.threads, budget, folder.name, *model)
    if kept is None:
        return answers
    old_ids = kept.ids
    return {name: replace(one, tokens=tuple(old_ids[list(one.tokens)].tolist())) for name, one in answers.items()}


def _predicted(measurement: Measurement) -> dict[str, Sequence[int]]:
    """Return the most probable tokens of every sample, given the reference answers."""
    return {one.id: one.argmax_ids for one in measurement.samples}


def _budget(checkpoint: Checkpoint, samples: Iterable[Inputs]) -> Budget:
    """Return the budget of the passes that generate answers, for an evaluation of samples."""
    weights = Counter[str]()
    for spec in checkpoint.specs:
        weights[spec.component] += prod(spec.shape)
    vision = checkpoint.architecture.vision
    per_pixel = weights["vision"] / weights["language"] / max(1, vision.patch_size) ** 2 if vision else 0.0
    total = sum(weights.values())
    minimum = MIN_TOKENS * min(1.0, SMALL_MODEL_WEIGHTS / total)
    cost = sum(map(Budget(0, per_pixel).cost, samples))
    return Budget(max(minimum, MAX_COST_SHARE * cost), per_pixel)


def _answers(
    folder: Path,
    encoded: Mapping[str, Inputs],
    predicted: Mapping[str, Sequence[int]],
    threads: int,
    budget: Budget,
    name: str,
    engine: Engine,
    model: Path,
    ids: list[str],
    options: EngineOptions = NO_OPTIONS,
) -> dict[str, GreedyAnswer]:
    (folder / name).mkdir()
    store = InputsStore(folder / name)
    for sample_id in ids:
        store.append(encoded[sample_id])
    if not ids:
        return {}
    tokens = [predicted[sample_id] for sample_id in ids]
    return dict(zip(ids, generate_answers(engine, model, store, tokens, threads, budget, options), strict=True))


def _cache_name(original: str, ids: Sequence[str], budget: Budget) -> str:
    """Return the name of the cache entry with the answers of an original to these samples."""
    return hashlib.sha256(json.dumps(["answers", original, *ids, *asdict(budget).values()]).encode()).hexdigest()


def _cached(folder: Path | None, name: str, compute: Callable[[], Answers]) -> Answers:
    """Return the answers of a cache entry, or compute them, and write the entry if there is a cache."""
    if folder is None:
        return compute()
    with cache.open_entry(folder, name) as entry:
        if entry and (found := _read_answers(entry / ANSWERS_FILE)) is not None:
            return found
    answers = compute()
    if cache.write_error(folder) is None:  # the report has the reason, because the measurement is not cached either
        with cache.new_entry(folder, name) as entry:
            (entry / ANSWERS_FILE).write_text(json.dumps({key: asdict(one) for key, one in answers.items()}))
    return answers


def _read_answers(file: Path) -> Answers | None:
    try:
        return TypeAdapter(Answers).validate_json(file.read_bytes())
    except (OSError, ValidationError):  # of another version
        return None
