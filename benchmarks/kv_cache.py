"""Measure the types of the KV cache in llama.cpp, on one artifact whose weights do not change.

python -m benchmarks.kv_cache

The artifact is phone-int4 of the reference checkpoint; every type is compared with the original on the held-out set.
"""

import argparse
import shutil

from benchmarks.commands import HELDOUT, REFERENCE, WORK, evaluate, provenance, run_command, write_result
from benchmarks.markdown import estimates, load_result, percent_change, table, thousandths, with_provenance
from benchmarks.methods import group_metrics

KV_CACHE_WORK = WORK / "kv-cache"
RECIPE = "phone-int4"
TYPES = ("f16", "q8_0", "q8_0/q4_0", "q4_0")
HEADINGS = ("type", "bytes of a token", "image KLD, nats / 1000", "text KLD, nats / 1000", "perplexity of images, %")


def main() -> None:
    """Build the artifact, evaluate it with every type, and record the metrics."""
    shutil.rmtree(KV_CACHE_WORK, ignore_errors=True)
    KV_CACHE_WORK.mkdir(parents=True)
    artifact, rows = KV_CACHE_WORK / "gguf", []
    run_command("quantize", REFERENCE, artifact, "--recipe", RECIPE, "--format", "gguf", out=artifact)
    for number, name in enumerate(TYPES):
        report = evaluate([artifact], KV_CACHE_WORK / str(number), "--kv-cache", name, "--no-answers")
        [result] = report.artifacts
        nbytes = result.measurement.kv_cache_bytes_per_token
        rows.append({"type": name, "bytes_per_token": nbytes, "groups": group_metrics(result.differences)})
    facts = {"recipe": RECIPE, "eval_set": HELDOUT.name, "rows": rows}
    write_result("kv-cache", provenance("benchmarks.kv_cache") | facts)


def kv_cache_table() -> str:
    """Return the table of the documentation."""
    result, rows = load_result("kv-cache"), []
    for row in result["rows"]:
        image, text = (estimates(row["groups"][group]) for group in ("image", "text"))
        divergences = (thousandths(one["kl_divergence"]) for one in (image, text))
        change = percent_change(image["perplexity_ratio"])
        rows.append([f"`{row['type']}`", f"{row['bytes_per_token']:,}", *divergences, change])
    return with_provenance(table(HEADINGS, rows, text_columns=1), result)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
