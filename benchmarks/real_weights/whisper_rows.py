"""Run the variants of the Whisper benchmark in processes of their own, one for every commit, and compare them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_weights.artifacts import commit_folder, run_python, sources_hash
from benchmarks.real_weights.inputs import calibration_set, test_set
from benchmarks.real_weights.measure import mean_ratio
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.variants import (
    CALIBRATION_SAMPLES,
    EARLIER,
    WHISPER_TEST_SAMPLES,
    WHISPER_VARIANTS,
)
from mcpmq.evaluate.bootstrap import bootstrap_mean

NAME = "whisper"
FOLDER = WORK / "whisper"


def measure_variants(*, run: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for every finished variant; unfinished ones are measured first if `run`."""
    if run:
        for commit in ("", EARLIER):
            measure_missing(commit)
    base = None
    for commit, scheme, method in WHISPER_VARIANTS:
        file = values_file(commit, scheme, method)
        if file.is_file():
            values = json.loads(file.read_text())
            base = base or values
            mean, ratio = bootstrap_mean(values), mean_ratio(values, base)
            print(f"{NAME} {scheme} {method} {commit}: KL {1000 * mean.value:.2f}, ratio {ratio.value:.3f}", flush=True)
            estimates = {"kl_divergence": mean.model_dump(), "kl_divergence_ratio": ratio.model_dump()}
            yield {"commit": commit, "scheme": scheme, "method": method, "tokens": sum(map(len, values)), **estimates}


def measure_missing(commit: str) -> None:
    """Measure the variants of a commit that are not finished."""
    pairs = [(scheme, method) for one, scheme, method in WHISPER_VARIANTS if one == commit]
    missing = [pair for pair in pairs if not values_file(commit, *pair).is_file()]
    if missing:
        out = variant_folder(commit)
        out.mkdir(parents=True, exist_ok=True)
        run_python(command(out, missing), out / "whisper.log", commit_folder(commit))


def command(out: Path, pairs: Sequence[tuple[str, str]]) -> list[object]:
    """Return the command that measures pairs of scheme and method."""
    sets = calibration_set(CALIBRATION_SAMPLES), test_set(WHISPER_TEST_SAMPLES)
    return ["-m", "benchmarks.real_weights.whisper", *sets, out, *(f"{scheme}:{method}" for scheme, method in pairs)]


def variant_folder(commit: str) -> Path:
    """Return the folder of the variants of a commit; empty: of the present sources."""
    return FOLDER / (commit or sources_hash())


def values_file(commit: str, scheme: str, method: str) -> Path:
    """Return the file with the KL divergences of every sample."""
    return variant_folder(commit) / f"{scheme}-{method}.json"
