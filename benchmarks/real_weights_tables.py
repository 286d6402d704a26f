"""Tables of benchmarks/README.md on real weights."""

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import estimates, load_result, percent, percent_change, provenance_line, table, thousandths
from mcpmq.evaluate import Estimate

RESULT = "real-weights"
METHODS = {"rtn": "RTN", "rtn-imatrix": "RTN, imatrix", "gptq": "GPTQ"}
TOOLS = {"gptqmodel": "GPTQModel"}
PEER_METHODS = {
    "gptq": "GPTQ",
    "gptq-desc-act": "GPTQ, `desc_act`",
    "gptq-act-group-aware": "GPTQ, `act_group_aware`",
    "gptq-mse": "GPTQ, `mse`",
}
HEADINGS = (
    "scheme",
    "method",
    "engine",
    "calibration tokens",
    "mean KLD, 10⁻³ nats",
    "ratio to the first row [95 %]",
    "perplexity change, %",
    "same top-1, %",
    "processor seconds",
)


def real_weights_table() -> str:
    """Return all variants with the usual number of calibration tokens."""
    rows = load_result(RESULT)["rows"]
    usual = rows[0]["calibration_tokens"]
    return table(HEADINGS, [_row(one) for one in rows if one["calibration_tokens"] in (0, usual)], 3)


def calibration_size_table() -> str:
    """Return the variants of the first row's scheme by number of calibration tokens."""
    rows = load_result(RESULT)["rows"]
    chosen = [one for one in rows if _family(one) in map(_family, _sized(rows)) and one["format"] == "gguf"]
    return table(HEADINGS, [_row(one) for one in sorted(chosen, key=lambda one: one["calibration_tokens"])], 3)


def whisper_table() -> str:
    """Return the variants of the decoder of Whisper."""
    headings = ("scheme", "method", "mean KLD, 10⁻³ nats", "ratio to the first row [95 %]")
    rows = [[one["scheme"], _method(one), *_divergence(one)] for one in load_result(RESULT)["whisper"]]
    return table(headings, rows, 2)


def real_weights_note() -> str:
    """Return the size of the test, the resolution, and the provenance."""
    result = load_result(RESULT)
    test, ratios = result["test"], [Estimate.model_validate(one["kl_divergence_ratio"]) for one in result["rows"][1:]]
    widths = sorted(100 * ratio.half_width / ratio.value for ratio in ratios)
    return (
        f"{test['tokens']:,} tokens of {test['samples']} texts, perplexity of the original"
        f" {test['perplexity']['value']:.1f}. Half the width of the interval of a ratio is"
        f" {widths[0]:.1f} to {widths[-1]:.1f} % of the ratio, median {widths[len(widths) // 2]:.1f} %."
        f" {provenance_line(result)}"
    )


def _sized(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in rows if one["calibration_tokens"] not in (0, rows[0]["calibration_tokens"])]


def _family(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("tool", "commit", "scheme", "method", "smooth"))


def _row(row: Mapping[str, Any]) -> list[str]:
    found = estimates({key: row[key] for key in ("perplexity_ratio", "top_1_agreement")})
    engine = {"gguf": "llama.cpp", "onnx": "ONNX Runtime"}[row["format"]]
    return [
        row["scheme"],
        _method(row),
        engine,
        f"{row['calibration_tokens']:,}",
        *_divergence(row),
        percent_change(found["perplexity_ratio"]),
        percent(found["top_1_agreement"]),
        f"{row['cost']['processor_seconds']:,.0f}",
    ]


def _divergence(row: Mapping[str, Any]) -> list[str]:
    found = estimates({key: row[key] for key in ("kl_divergence", "kl_divergence_ratio")})
    ratio = found["kl_divergence_ratio"]
    return [thousandths(found["kl_divergence"]), f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"]


def _method(row: Mapping[str, Any]) -> str:
    if row.get("tool", "mcpmq") != "mcpmq":
        return f"{TOOLS[row['tool']]} {PEER_METHODS[row['method']]}"
    smooth = "AWQ + " * (row.get("smooth") == "awq")
    return f"{smooth}{METHODS[row['method']]}" + f" at {row['commit']}" * bool(row["commit"])
