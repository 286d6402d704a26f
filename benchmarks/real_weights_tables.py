"""Tables of benchmarks/README.md on real weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import estimates, load_result, percent, percent_change, provenance_line, table, thousandths
from benchmarks.real_weights import results
from benchmarks.real_weights.variants import NUM_LAYERS
from mcpmq.evaluate import Estimate

METHODS = {
    "rtn": "round to nearest",
    "rtn-imatrix": "round to nearest, imatrix",
    "imatrix": "imatrix",
    "llama-quantize": "llama-quantize, imatrix",
    "gptq": "GPTQ",
}
TOOLS = {
    "gptqmodel": "GPTQModel",
    "autoround": "AutoRound",
    "llmcompressor": "llm-compressor",
    "llama-quantize": "llama-quantize",
    "ik-llama": "ik_llama.cpp",
}
PEER_METHODS = METHODS | {
    "gptq-desc-act": "GPTQ, `desc_act`",
    "gptq-act-group-aware": "GPTQ, `act_group_aware`",
    "gptq-mse": "GPTQ, `act_group_aware`, `mse`",
    "200-steps": "200 steps",
}
HEADINGS = (
    "scheme",
    "tool, method",
    "engine",
    "commit",
    "bits per weight",
    "calibration tokens",
    "mean KLD, 10⁻³ nats",
    "ratio to the first row [95 %]",
    "perplexity change, %",
    "same top-1, %",
    "processor seconds",
)
TEXT_COLUMNS = 4
ENGINES = {"gguf": "llama.cpp", "onnx": "ONNX Runtime"}
EARLIER_RESULT = "real-weights-all-layers"
Rows = Sequence[Mapping[str, Any]]


def real_weights_table() -> str:
    """Return the variants of some layers with the usual number of calibration tokens."""
    rows = [one for one in results.load()["rows"] if one["layers"] < NUM_LAYERS]
    usual = rows[0]["calibration_tokens"] if rows else 0
    return _table([one for one in rows if one["calibration_tokens"] in (0, usual)])


def all_layers_table() -> str:
    """Return the variants of all layers."""
    return _table([one for one in results.load()["rows"] if one["layers"] == NUM_LAYERS])


def qwen_table() -> str:
    """Return the variants of Qwen, those with some layers first."""
    return _table(results.load()["qwen"])


def qwen_note() -> str:
    """Return the size of the test of Qwen."""
    result = results.load()
    return f"{_test_facts(result['qwen_test'])}. {_processors(result['qwen'])}" if result["qwen"] else ""


def calibration_size_table() -> str:
    """Return method, scheme and model of the first rows of both models by number of calibration tokens."""
    result = results.load()
    models = {"SmolLM2": result["rows"], "Whisper": result["whisper"]}
    cells = [
        [model, *_size_cells(one, rows[0])]
        for model, found in models.items()
        if (rows := _same_method(found))
        for one in sorted(rows, key=lambda one: int(one["calibration_tokens"]))
    ]
    headings = ["model", "calibration tokens", HEADINGS[6], "ratio to the usual number [95 %]", "rounded to nearest"]
    return table([*headings, "matrices"], cells, 1)


def _same_method(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows like the first one with GPTQ, which is the first."""
    first = next((one for one in rows if one["method"] == "gptq"), None)
    return [one for one in rows if first and _family(one) == _family(first)]


def earlier_table() -> str:
    """Return the variants of all layers at an earlier commit, on more text."""
    rows = load_result(EARLIER_RESULT)["rows"]
    headings = [*HEADINGS[:3], *HEADINGS[5:]]
    return table(headings, map(_earlier_row, rows), 3)


def earlier_whisper_table() -> str:
    """Return the variants of the decoder of Whisper at an earlier commit."""
    cells = [
        [one["scheme"], _earlier_method(one), *_earlier_divergence(one)]
        for one in load_result(EARLIER_RESULT)["whisper"]
    ]
    return table(("scheme", "method", *HEADINGS[6:8]), cells, 2)


def earlier_note() -> str:
    """Return the provenance of the earlier result."""
    result = load_result(EARLIER_RESULT)
    return f"{result['test']['tokens']:,} tokens of {result['test']['samples']} texts. {provenance_line(result)}"


def _earlier_row(row: Mapping[str, Any]) -> list[str]:
    cells = [row["scheme"], _earlier_method(row), ENGINES[row["format"]], f"{row['calibration_tokens']:,}"]
    return [*cells, *_earlier_divergence(row), *_other_cells(row)]


def _earlier_method(row: Mapping[str, Any]) -> str:
    """Return the method, with the commit of mcpmq if it is not that of the result."""
    named = {"tool": "mcpmq", "smooth": "none", **row}
    return _method(named) + f" at {row['commit']}" * bool(row["commit"])


def _earlier_divergence(row: Mapping[str, Any]) -> list[str]:
    ratio = Estimate.model_validate(row["kl_divergence_ratio"])
    divergence = thousandths(Estimate.model_validate(row["kl_divergence"]))
    return [divergence, f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"]


def _size_cells(row: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    divergence = Estimate.model_validate(row["kl_divergence"])
    counts = [f"{row[key]:,}" for key in ("rounded_to_nearest", "matrices")]
    return [f"{row['calibration_tokens']:,}", thousandths(divergence), ratio_cell(row, usual), *counts]


def whisper_table() -> str:
    """Return the variants of the decoder of Whisper with the usual calibration."""
    rows = results.load()["whisper"]
    usual = rows[0]["calibration_tokens"] if rows else 0
    headings = ("scheme", "method", "commit", HEADINGS[4], *HEADINGS[6:8])
    cells = [
        [one["scheme"], METHODS[one["method"]], one["commit"], *_bits_and_divergence(one, rows[0])]
        for one in rows
        if one["calibration_tokens"] in (0, usual)
    ]
    return table(headings, cells, 3)


def whisper_note() -> str:
    """Return the processors of the rows of Whisper."""
    rows = results.load()["whisper"]
    return _processors(rows) if rows else ""


def real_weights_note() -> str:
    """Return the size of the test, the resolution, and the provenance."""
    result = results.load()
    if not result["rows"]:
        return ""
    facts, rows = f"{_test_facts(result['test'])}. ", result["rows"]
    ratios = [results.ratio(one, rows[0]) for one in rows[1:] if one["layers"] == rows[0]["layers"]]
    if widths := sorted(100 * one.half_width / one.value for one in ratios):
        facts += "Half the width of the interval of a ratio is"
        facts += f" {widths[0]:.1f} to {widths[-1]:.1f} % of the ratio, median {widths[len(widths) // 2]:.1f} %. "
    return f"{facts}{_processors(rows)} The last run: {provenance_line(result)}"


def _processors(rows: Rows) -> str:
    """Return the processors of the machines that measured rows, with the number of rows of each."""
    counts = Counter(row["processor"] for row in rows)
    return f"Measured on {', '.join(f'{name} ({count} of {len(rows)} rows)' for name, count in counts.most_common())}."


def _test_facts(test: Mapping[str, Any]) -> str:
    perplexity = test["perplexity"]["value"]
    return f"{test['tokens']:,} tokens of {test['samples']} texts, perplexity of the original {perplexity:.1f}"


def _table(rows: Rows) -> str:
    """Return rows, with ratios to the first of them that has as many layers."""
    first = {one["layers"]: one for one in reversed(rows)}
    return table(HEADINGS, [_row(one, first[one["layers"]]) for one in rows], TEXT_COLUMNS)


def _family(row: Mapping[str, Any]) -> tuple[object, ...]:
    names = ("tool", "requested_commit", "scheme", "method", "smooth", "targets", "model", "layers", "format")
    return tuple(row.get(key) for key in names)


def _row(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    bits, *divergence = _bits_and_divergence(row, base)
    tokens = f"{row['calibration_tokens']:,}"
    cells = [row["scheme"], _method(row), ENGINES[row["format"]], row["commit"], bits, tokens]
    return [*cells, *divergence, *_other_cells(row)]


def _other_cells(row: Mapping[str, Any]) -> list[str]:
    found = estimates({key: row[key] for key in ("perplexity_ratio", "top_1_agreement")})
    seconds = f"{row['cost']['processor_seconds']:,.0f}"
    return [percent_change(found["perplexity_ratio"]), percent(found["top_1_agreement"]), seconds]


def _bits_and_divergence(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    divergence = Estimate.model_validate(row["kl_divergence"])
    return [f"{row['bits_per_weight']:.2f}", thousandths(divergence), ratio_cell(row, base)]


def ratio_cell(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return the ratio of the mean KL divergences of two rows with its interval."""
    found = results.ratio(row, base)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _method(row: Mapping[str, Any]) -> str:
    if row["tool"] != "mcpmq":
        return f"{TOOLS[row['tool']]}, {PEER_METHODS[row['method']]}"
    if row["scheme"] == "f32":
        return "not quantized"
    more = ", targets of the model" * (row.get("targets") == "model") + ", as float32" * bool(row.get("as_float32"))
    return f"mcpmq, {'AWQ + ' * (row['smooth'] == 'awq')}{METHODS[row['method']]}{more}"
