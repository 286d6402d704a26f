"""Run the variants of the Whisper benchmark in processes of their own, one for every commit and calibration set."""

import json
from collections.abc import Container, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.commands import commit as present_commit
from benchmarks.real_weights.artifacts import commit_folder, run_python, sources_hash
from benchmarks.real_weights.inputs import calibration_set, test_set, write_inputs
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.results import BY_SAMPLE, Row
from benchmarks.real_weights.variants import WHISPER_TEST_SAMPLES, WHISPER_VARIANTS, WhisperVariant
from mcpmq.evaluate.bootstrap import bootstrap_mean

NAME = "whisper"
VARIANTS = {f"{NAME}-{variant.name}": variant for variant in WHISPER_VARIANTS}  # by name in the command line
FOLDER = WORK / "whisper"


def chosen(names: Container[str]) -> list[WhisperVariant]:
    """Return the variants with these names in the command line, all with the name of the benchmark."""
    return [variant for name, variant in VARIANTS.items() if name in names or NAME in names]


def measure_variants(chosen: Sequence[WhisperVariant]) -> Iterator[list[Row]]:
    """Measure variants that are not finished; yield the rows of those that run in one process.

    Raises:
        SystemExit: a process failed; the message names its log.
    """
    for _, found in groupby(chosen, lambda one: (one.commit, one.samples)):
        variants = list(found)
        measure_missing(variants)
        yield [read_row(variant) for variant in variants]


def read_row(variant: WhisperVariant) -> Row:
    """Return the row of a finished variant."""
    found = json.loads(values_file(variant).read_text())
    values = found["kl_divergences"]
    divergence = bootstrap_mean(values)
    print(f"{NAME} {variant.name}: KL {1000 * divergence.value:.2f}, {found['bits_per_weight']:.2f} bits", flush=True)
    return {
        "name": variant.name,
        "requested_commit": variant.commit,
        "commit": found["commit"],
        "scheme": variant.scheme,
        "method": variant.method,
        "bits_per_weight": found["bits_per_weight"],
        "calibration_tokens": write_inputs()[variant.samples] if variant.method != "rtn" else 0,
        "rounded_to_nearest": found["rounded_to_nearest"],
        "matrices": found["matrices"],
        "tokens": sum(map(len, values)),
        "kl_divergence": divergence.model_dump(),
        BY_SAMPLE: [float(f"{sum(sample):.8g}") for sample in values],
    }


def measure_missing(variants: Sequence[WhisperVariant]) -> None:
    """Measure the variants of a commit and calibration set that are not finished."""
    missing = [variant for variant in variants if not values_file(variant).is_file()]
    if missing:
        out, commit = variant_folder(missing[0].commit), missing[0].commit
        out.mkdir(parents=True, exist_ok=True)
        sets = calibration_set(missing[0].samples), test_set(WHISPER_TEST_SAMPLES)
        words = [f"{one.scheme}:{one.method}:{values_file(one)}" for one in missing]
        script = ["-m", "benchmarks.real_weights.whisper", *sets, commit or present_commit(), *words]
        run_python(script, out / f"{missing[0].name}.log", commit_folder(commit))


def variant_folder(commit: str) -> Path:
    """Return the folder of the variants of a commit; empty: of the present sources."""
    return FOLDER / (commit or sources_hash())


def values_file(variant: WhisperVariant) -> Path:
    """Return the file with the KL divergences of every sample."""
    return variant_folder(variant.commit) / f"{variant.name}.json"
