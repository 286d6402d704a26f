"""Scores of served models on a task: `python -m benchmarks.tasks ORIGINAL ARTIFACT...`.

Every model is served by `mcpmq serve`, the original in PyTorch, and answers the prompts of a sample set greedily. The
score of a sample is 1 if the answer is the expected one, else 0; differences from the original are paired by sample.
The result is written to benchmarks/results/tasks.json, and a score file for `mcpmq evaluate --scores` to build/tasks.
"""

import argparse
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.commands import HELDOUT, ROOT, provenance, write_result
from benchmarks.serving import CHAT, running_server
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate.task_scores import compare_scores
from mcpmq.serving.artifacts import find_artifact, is_checkpoint

MAX_TOKENS, METRIC = 48, "exact"
SCORE_FILE = ROOT / "build" / "tasks" / "scores.json"
Scores = Mapping[str, float]  # by sample


def question(sample: Sample) -> dict[str, Any]:
    """Return the request for a sample."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": sample.prompt}]
    if isinstance(sample.image, Path):
        url = "data:image/png;base64," + b64encode(sample.image.read_bytes()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": MAX_TOKENS}


def score(client: httpx2.Client, sample: Sample) -> float:
    """Return 1 if the model answers as expected, else 0.

    Raises:
        HTTPStatusError: the server has not answered; the sample has no score then.
    """
    response = client.post(CHAT, json=question(sample)).raise_for_status()
    answer = response.json()["choices"][0]["message"]["content"]
    return float(answer.strip() == sample.answer.strip())


def scores_of(model: Path, samples: Sequence[Sample]) -> tuple[str, Scores]:
    """Serve a model; return its name, and its scores."""
    with running_server(model) as (client, _):
        name = client.get("/v1/models").json()["data"][0]["id"]
        return name, {sample.id: score(client, sample) for sample in samples}


def sha256_of(model: Path) -> str:
    """Return the hash that a score file names a model by."""
    return Checkpoint.open(model).sha256 if is_checkpoint(model) else find_artifact(model).sha256


def score_file(name: str, models: Sequence[Path], scores: Sequence[Scores]) -> dict[str, Any]:
    """Return the content of a score file; the first model is the original."""
    entries = [{"sha256": sha256_of(model), "scores": one} for model, one in zip(models, scores, strict=True)]
    task = {"name": name, "metric": METRIC, "original": entries[0], "artifacts": entries[1:]}
    return {"schema_version": 1, "tasks": [task]}


def summary(scores: Scores, original: Scores) -> dict[str, Any]:
    """Return mean, paired difference from the original with 95 % intervals, and the scores by sample."""
    found = compare_scores(METRIC, original, scores)
    return {
        "mean": found.artifact.model_dump(),
        "difference": found.score_change.model_dump(),
        "scores": dict(scores),
    }


def main() -> None:
    """Score all models on the images of a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--set", type=Path, default=HELDOUT)
    options = parser.parse_args()
    found, models = SampleSet.open(options.set), [options.original, *options.artifacts]
    samples = [sample for sample in found.samples if sample.image]
    names, scores = zip(*(scores_of(model, samples) for model in models), strict=True)
    SCORE_FILE.parent.mkdir(parents=True, exist_ok=True)
    SCORE_FILE.write_text(json.dumps(score_file(found.name, models, scores), indent=1) + "\n")
    result = {
        **provenance("benchmarks.tasks", "starlette", "onnxruntime"),
        "task": {"name": found.name, "sha256": found.sha256, "samples": len(samples), "metric": "exact match"},
        "models": {name: summary(one, scores[0]) for name, one in zip(names, scores, strict=True)},
    }
    write_result("tasks", result)
    print(json.dumps({name: model["mean"]["value"] for name, model in result["models"].items()}, indent=1))


if __name__ == "__main__":
    main()
