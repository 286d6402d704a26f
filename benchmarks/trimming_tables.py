"""Tables of trimmed vocabularies: bytes at published size, levels of the reference checkpoint, and languages."""

from collections.abc import Mapping
from math import isnan, log
from typing import Any

from benchmarks.markdown import estimates, load_result, megabytes, percent_change, table, thousandths, with_provenance
from mcpmq.evaluate import Estimate

LANGUAGES = {
    "en": "English",
    "de": "German",
    "ru": "Russian",
    "ar": "Arabic",
    "hi": "Hindi",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
}
GROUP = "text"


def size_table() -> str:
    """Return bytes, memory and times of llama.cpp at the published size."""
    result, rows = load_result("trimmed-size"), []
    before = sum(result["rows"][0]["artifact_bytes"].values())
    for row in result["rows"]:
        nbytes = sum(row["artifact_bytes"].values())
        change = "" if nbytes == before else f"{100 * (nbytes / before - 1):+.1f}"
        forecast = "equal" if row["is_equal"] else "different"
        seconds = (row["prefill_seconds"], 1000 * row["decode_seconds_per_token"])
        times = [f"{row['prompt_tokens']:,}", f"{seconds[0]:.2f}", f"{seconds[1]:.0f}"]
        memory = megabytes(row["peak_rss_bytes"])
        rows.append([row["kept"], f"{row['tokens']:,}", forecast, f"{nbytes:,}", change, memory, *times])
    headings = ("kept", "tokens", "forecast", "bytes", "change, %", "peak memory, MB")
    times_headings = ("tokens of a prompt", "its prefill, s", "decode, ms a token")
    return with_provenance(table((*headings, *times_headings), rows, text_columns=1), result)


def published_texts_table() -> str:
    """Return the numbers of tokens of texts in the trimmed vocabularies of the published size."""
    result = load_result("trimmed-size")
    rows = [
        [
            row["kept"],
            f"{row['unchanged_texts']:,} of {result['texts']:,}",
            f"{row['trimmed_text_tokens'] / result['text_tokens']:.3f}",
            *(f"{row['tokens_per_character'][language]:.2f}" for language in LANGUAGES),
        ]
        for row in result["rows"]
    ]
    headings = ("kept", "texts with the same tokens", "tokens, ratio", *LANGUAGES)
    return table(headings, rows, text_columns=1)


def levels_table() -> str:
    """Return accuracy, bytes, memory and texts of the levels of trimming."""
    result = load_result("trimming")
    rows = [[f"{row['tokens']:,}", *_sizes(row), *_accuracy(row), *_texts(row, result)] for row in result["rows"]]
    headings = (
        "tokens",
        "MB",
        "peak memory, MB",
        "images: mean KLD",
        "texts: mean KLD",
        "removed probability",
        "perplexity a character, %",
        "samples with the same tokens",
        "source texts with the same tokens",
        "their tokens, ratio",
    )
    return with_provenance(table(headings, rows, text_columns=0), result)


def _sizes(row: Mapping[str, Any]) -> list[str]:
    return [megabytes(row["nbytes"]), megabytes(row["peak_rss_bytes"])]


def _accuracy(row: Mapping[str, Any]) -> list[str]:
    divergences = [_thousandths(row["groups"][name]["kl_divergence"]) for name in ("image", GROUP)]
    if not row["vocabulary"]:
        return [*divergences, "", "", ""]
    trimmed = row["vocabulary"][GROUP]
    change = percent_change(Estimate.model_validate(trimmed["character_perplexity_ratio"]))
    removed = _thousandths(trimmed["removed_probability"])
    same, samples = (sum(one[key] for one in row["vocabulary"].values()) for key in ("same_tokens", "samples"))
    return [*divergences, removed, change, f"{same} of {samples}"]


def _thousandths(record: Mapping[str, Any]) -> str:
    """Return an estimate in thousandths; an empty text if no sample has it."""
    estimate = Estimate.model_validate(record)
    return "" if isnan(estimate.value) else thousandths(estimate)


def _texts(row: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    ratio = row["trimmed_text_tokens"] / result["text_tokens"]
    return [f"{row['unchanged_texts']} of {result['texts']}", f"{ratio:.3f}"]


def languages_table() -> str:
    """Return tokens and losses by character of every language at every level of trimming."""
    result = load_result("trimming")
    trimmed = [row for row in result["rows"] if row["vocabulary"]]
    rows = [
        [LANGUAGES[name], *(_tokens(row, name, trimmed[0]) for row in result["rows"]), *_perplexities(name, trimmed)]
        for name in LANGUAGES
    ]
    levels, sizes = ([f"{row['tokens']:,}" for row in some] for some in (result["rows"], trimmed))
    tokens = [f"tokens a character, {level}" for level in levels]
    headings = ("language", *tokens, "nats a character", *(f"change, {size}" for size in sizes))
    return with_provenance(table(headings, rows, text_columns=1), result)


def _tokens(row: Mapping[str, Any], language: str, trimmed: Mapping[str, Any]) -> str:
    tokens, characters = (one["languages"][language] for one in (row, trimmed))
    return f"{tokens['answer_tokens'] / characters['characters']:.2f}"


def _perplexities(language: str, trimmed: list[Mapping[str, Any]]) -> list[str]:
    keys = ("original_character_perplexity", "character_perplexity_ratio")
    found = [estimates({key: row["languages"][language][key] for key in keys}) for row in trimmed]
    original = found[0]["original_character_perplexity"]
    changes = (_nats(one["character_perplexity_ratio"]) for one in found)
    return [f"{log(original.value):.2f}", *changes]


def _nats(ratio: Estimate) -> str:
    """Return a ratio of perplexities as a difference in nats, with half of its 95 % interval."""
    return f"{log(ratio.value):+.2f} ± {log(ratio.high / ratio.low) / 2:.2f}"
