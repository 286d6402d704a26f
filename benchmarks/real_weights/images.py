"""Compare calibration sets and schemes on images: SmolLM2 with the vision encoder that was trained into it.

python -m benchmarks.real_weights.images                  all variants, the most important ones first
python -m benchmarks.real_weights.images --only VARIANT   these variants; other rows are kept

The result is benchmarks/results/real-weights-images.json, written after every variant; every row has its commit. The
images of the test have contents that neither training nor calibration has.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.commands import RESULTS, provenance, write_result
from benchmarks.markdown import load_result
from benchmarks.real_weights import measure
from benchmarks.real_weights.__main__ import require_committed_sources
from benchmarks.real_weights.artifacts import make_artifacts, read_facts
from benchmarks.real_weights.image_inputs import MODEL, TEST, write_image_inputs
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.results import BY_SAMPLE, Row, merged
from benchmarks.real_weights.variants import IMAGE_VARIANTS, CalibrationKind, Variant
from mcpmq.evaluate import ORIGINAL, Measurement, Settings, differences

NAME = "real-weights-images"
METRICS = {"kl_divergence", "top_1_agreement", "perplexity_ratio", "exact_match_change"}
KEYS = [(one.name, name) for one in IMAGE_VARIANTS for name in one.formats]  # of the rows, in their order
ORIGINAL_METRICS = {"samples", "tokens", "perplexity", "top_1_accuracy", "exact_match"}


def measure_variant(variant: Variant, bench: measure.Bench, tokens: Mapping[CalibrationKind, int]) -> Iterator[Row]:
    """Quantize and measure a variant; yield one row for every artifact.

    Raises:
        SystemExit: a command failed; the message names its log.
    """
    for artifact in make_artifacts(variant):
        facts = {"calibration_tokens": tokens[variant.calibration] if variant.samples else 0}
        row: Row = {"name": variant.name, "format": artifact.name, "weights": dict(variant.weights)}
        row |= {"layers": variant.layers, "method": variant.method, "calibration": variant.calibration}
        row |= facts | asdict(read_facts(variant))
        yield row | compare(bench.measure(artifact), bench.original)


def compare(measured: Measurement, original: Measurement) -> dict[str, Any]:
    """Return the differences from the original by group, and the KL divergences by skill and of every image."""
    found = differences(original.samples, measured.samples, ORIGINAL)
    groups = {group: one.model_dump(mode="json", include=METRICS) for group, one in found.items()}
    sums = zip(measure.kl_divergence_sums(measured), measured.samples, strict=True)
    by_image = [value for value, sample in sums if sample.group == "image"]
    return groups | {"kl_divergence_by_kind": measure.mean_by_kind(measured), BY_SAMPLE: by_image}


def describe_test(original: Measurement) -> dict[str, Any]:
    """Return the results of the original by group."""
    return {group: one.model_dump(mode="json", include=ORIGINAL_METRICS) for group, one in original.groups.items()}


def load() -> dict[str, Any]:
    """Return the committed result; without one it has no rows."""
    return load_result(NAME) if (RESULTS / f"{NAME}.json").is_file() else {"rows": []}


def main() -> None:
    """Quantize and measure the variants, and record the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [variant.name for variant in IMAGE_VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="VARIANT", default=names)
    parser.add_argument("--threads", type=int, help="of the engines; default: all cores")
    options = parser.parse_args()
    require_committed_sources()
    tokens, rows = write_image_inputs(), load()["rows"]
    settings = Settings(Settings.from_options(options.threads).threads, WORK / "cache")
    with measure.open_bench(MODEL, TEST, settings) as bench:
        test = describe_test(bench.original)
        for variant in (one for one in IMAGE_VARIANTS if one.name in options.only):
            rows = merged(rows, measure_variant(variant, bench, tokens), KEYS)
            result = provenance("benchmarks.real_weights.images", "onnxruntime", "tokenizers")
            write_result(NAME, result | {"test": test, "rows": rows})
            print(variant.name, flush=True)


if __name__ == "__main__":
    main()
