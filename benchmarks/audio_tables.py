"""Tables and sentences about models with audio: calibration sets, engines, and the encoder's bytes and times."""

from collections.abc import Iterator, Mapping
from textwrap import fill
from typing import Any

from benchmarks.markdown import (
    estimates,
    load_result,
    megabytes,
    percent,
    percent_change,
    table,
    thousandths,
    with_provenance,
)
from mcpmq.evaluate import Estimate

FORMATS = {"quantized": "PyTorch", "onnx": "ONNX Runtime", "gguf": "llama.cpp"}
NEAREST_LABEL, UNQUANTIZED = "none: round to nearest", "nothing"
SET_LABELS = {
    "": NEAREST_LABEL,
    "texts": "texts only",
    "noise": "noise for speech",
    "speech, as few": "speech, as few samples as texts",
    "speech": "speech",
}
WIDTH = 140  # of lines in documents
Row = Mapping[str, Any]


def _rows(kind: str) -> Iterator[Row]:
    return (row for row in load_result("audio")["rows"] if row["format"] == kind)


def _row(part: str, scheme: str, calibration: str, kind: str = "quantized") -> Row:
    """Return the row of a variant in one format."""
    found = _found(part, scheme, calibration, kind)
    assert found, (part, scheme, calibration, kind)
    return found


def _group(row: Row, name: str = "audio") -> dict[str, Estimate]:
    return estimates(row["groups"][name])


def _set_label(result: Row, calibration: str) -> str:
    count = result["calibration"].get(calibration)
    return SET_LABELS[calibration] + (f" ({count['samples']}, {count['audio']} with audio)" if count else "")


def calibration_table() -> str:
    """Return the loss of every part, scheme and calibration set in PyTorch."""
    result = load_result("audio")
    original = estimates({name: result["original"]["audio"][name] for name in ("perplexity", "exact_match")})
    exact = percent(original["exact_match"])
    rows = [["the original", "", "", "", f"{original['perplexity'].value:.3f}", "", exact, ""]]
    rows += [_calibration_row(result, row) for row in _rows("quantized") if row["part"]]
    headings = ("quantized", "scheme", "calibration", "mean KLD, 10⁻³ nats", "perplexity", "change, %")
    return with_provenance(table((*headings, "exact match, %", "texts: mean KLD"), rows, 3), result)


def _calibration_row(result: Row, row: Row) -> list[str]:
    audio, text = _group(row), _group(row, "text")
    label = _set_label(result, row["calibration"])
    perplexity, change = f"{audio['perplexity'].value:.3f}", percent_change(audio["perplexity_ratio"])
    losses = [thousandths(audio["kl_divergence"]), perplexity, change, percent(audio["exact_match"])]
    return [row["part"], f"`{row['scheme']}`", label, *losses, thousandths(text["kl_divergence"])]


def changes_table() -> str:
    """Return the paired change of the mean KLD to the calibration with speech, in PyTorch."""
    changes = (one for one in load_result("audio")["changes"] if one["format"] == "quantized")
    rows = [
        [one["part"], SET_LABELS[one["from"]], thousandths(Estimate.model_validate(one["kl_divergence_increase"]), "+")]
        for one in changes
    ]
    return table(("quantized", "calibration", "change of the mean KLD with speech, 10⁻³ nats"), rows, 2)


def engines_table() -> str:
    """Return the mean KLD of the same codes in all engines, and in llama.cpp from its unquantized artifact."""
    variants = [(row["part"], row["scheme"], row["calibration"]) for row in _rows("onnx")]
    rows = [_engines_row(*one) for one in variants]
    engines = (f"{name}, 10⁻³ nats" for name in FORMATS.values())
    headings = ("quantized", "scheme", "calibration", *engines, "llama.cpp, from unquantized")
    return table(headings, rows, 3)


def _engines_row(part: str, scheme: str, calibration: str) -> list[str]:
    by_format = {kind: _found(part, scheme, calibration, kind) for kind in FORMATS}
    cells = [thousandths(_group(row)["kl_divergence"]) if row else "" for row in by_format.values()]
    baseline = (by_format["gguf"] or {}).get("from_unquantized", {}).get("audio")
    change = thousandths(Estimate.model_validate(baseline["kl_divergence"])) if baseline and part else ""
    label = SET_LABELS[calibration] if part else ""
    return [part or UNQUANTIZED, f"`{scheme}`", label, *cells, change]


def _found(part: str, scheme: str, calibration: str, kind: str) -> Row | None:
    key = {"part": part, "scheme": scheme, "calibration": calibration}
    return next((row for row in _rows(kind) if key.items() <= row.items()), None)


def glma_table() -> str:
    """Return the unquantized model in every engine: answers about audio, and to texts as a control."""
    rows = [_glma_row(label, _row("", "f32", "", kind)) for kind, label in FORMATS.items()]
    headings = ("engine", "mean KLD, 10⁻³ nats", "perplexity", "change, %", "exact match, %", "texts: mean KLD")
    return table(headings, rows, 1)


def _glma_row(label: str, row: Row) -> list[str]:
    audio, text = _group(row), _group(row, "text")
    cells = [thousandths(audio["kl_divergence"]), f"{audio['perplexity'].value:.3f}"]
    cells += [percent_change(audio["perplexity_ratio"]), percent(audio["exact_match"])]
    return [label, *cells, thousandths(text["kl_divergence"])]


def encoder_table() -> str:
    """Return bytes and processor time of the audio graph by scheme, with ratios to float32."""
    result = load_result("audio")["encoder"]
    first, rows = result["rows"][0], []
    for row in result["rows"]:
        ratios = [f"{row[key] / first[key]:.2f}" for key in ("nbytes", "seconds")]
        rows.append([f"`{row['scheme']}`", megabytes(row["nbytes"]), ratios[0], f"{row['seconds']:.2f}", ratios[1]])
    headings = ("scheme", "MB", "ratio", f"seconds for {result['audio_seconds']} s of audio", "ratio")
    return table(headings, rows, 1)


def scheme_summary() -> str:
    """Return the sentences for users who choose a scheme and a calibration set."""
    return "\n".join(map(_wrapped, (_scheme_sentence(), _calibration_sentence())))


def glma_summary() -> str:
    """Return the sentences for users who choose GGUF with audio."""
    return "\n".join(map(_wrapped, (_glma_sentence(), _glma_quantization_sentence())))


def _wrapped(sentence: str) -> str:
    return fill(sentence, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _nats(part: str, scheme: str, calibration: str, kind: str = "quantized") -> str:
    return thousandths(_group(_row(part, scheme, calibration, kind))["kl_divergence"])


def _scheme_sentence() -> str:
    both = "language and encoder"
    values = [_nats(both, "int8-g32", ""), _nats(both, "int4-g32", ""), _nats(both, "int4-g32", "speech")]
    return (
        f"- Language model and audio encoder have a mean KLD of {values[0]} in 8 bits (10⁻³ nats ± half of the 95 %"
        f" interval). In 4 bits it is {values[1]} rounded to nearest, and {values[2]} by GPTQ with speech in the"
        " calibration set."
    )


def _calibration_sentence() -> str:
    texts, few, speech = (_nats("language", "int4-g32", name) for name in ("texts", "speech, as few", "speech"))
    noise, encoder = (_nats("encoder", "int4-g32", name) for name in ("noise", "speech"))
    return (
        f"- **Int4 needs speech in the calibration set.** The language model has {texts} with texts only, {few} with"
        f" as few samples of speech and texts, {speech} with all; the audio encoder has {noise} with noise and"
        f" {encoder} with speech. A set without audio is an error for the matrices of the encoder."
    )


def _glma_sentence() -> str:
    found = _group(_row("", "f32", "", "gguf"))
    original = Estimate.model_validate(load_result("audio")["original"]["audio"]["exact_match"])
    return (
        f"- **The cost of `glma`**: without quantization the mean KLD is {thousandths(found['kl_divergence'])} (10⁻³"
        f" nats), the perplexity changes by {percent_change(found['perplexity_ratio'])} %, and exact match is"
        f" {percent(found['exact_match'])} %, where the original has {percent(original)} %."
    )


def _glma_quantization_sentence() -> str:
    nearest, speech = (_from_unquantized("language and encoder", name) for name in ("", "speech"))
    return (
        "- Language model and encoder in 4 bits have, from this unquantized artifact, a mean KLD of"
        f" {speech} by GPTQ with speech, and {nearest} rounded to nearest."
    )


def _from_unquantized(part: str, calibration: str) -> str:
    divergence = _row(part, "int4-g32", calibration, "gguf")["from_unquantized"]["audio"]["kl_divergence"]
    return thousandths(Estimate.model_validate(divergence))
