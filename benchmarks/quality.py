"""The comparison with other tools in README.md: mean KLD at 4.5 bits per weight, from committed results."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import estimates, load_result, percent_change, table, thousandths
from benchmarks.real_weights import results
from mcpmq.evaluate import Estimate

# Rows of peers.json: tool, method, calibration data.
PEERS = {
    ("mcpmq", "awq-gptq", "images"): "**mcpmq, AWQ + GPTQ**",
    ("gptqmodel", "gptq-desc-act", "images"): "GPTQModel, GPTQ with `desc_act`",
    ("mcpmq", "gptq", "images"): "**mcpmq, GPTQ**",
    ("autoround", "200-steps", "images"): "AutoRound, 200 steps",
    ("gptqmodel", "awq", "images"): "GPTQModel, AWQ",
    ("gptqmodel", "gptq", "images"): "GPTQModel, GPTQ",
    ("mcpmq", "rtn", "nothing"): "round to nearest",
}
# Rows of methods.json whose blocks are those of llama-quantize: method, calibration data.
LLAMA_QUANTIZE = {
    ("rtn-imatrix", "text"): "llama-quantize, Q4_K with imatrix",
    ("rtn", "nothing"): "llama-quantize, Q4_K",
}
PEERS_NOTE = """\
Mean KL divergence from the original on held-out answers, 10⁻³ nats ± half of the 95 % interval; the matrices of the
language model have 4.5 bits per weight (`desc_act`: 4.59), all other weights are unchanged. The last column has the
same model without the random channel scales of the reference checkpoint, which smoothing and `desc_act` undo: there all
methods are close. The blocks of llama-quantize are those of ggml, written by mcpmq; `llama-imatrix` calibrates on text
only. AutoRound takes ten times the processor time
([conditions, costs and limits](benchmarks/README.md#comparison-with-other-tools))."""
REAL_WEIGHTS_NOTE = """\
Three of 30 layers of a pretrained language model, SmolLM2 with 135 million weights: mean KL divergence from the
original on {tokens:,} held-out tokens of text, 10⁻³ nats ± half of the 95 % interval. All tools have the same
calibration tokens. The blocks of llama-quantize are those of ggml, called by mcpmq. The weights of other tools are
measured as 32-bit floats, those of mcpmq in their own types, whose products round activations to 8 bits.{time}
{all_layers}
[Benchmarks](benchmarks/README.md#real-weights) have the conditions, all layers, other sizes, the
[rows that each default follows from](benchmarks/README.md#defaults), and a comparison with images in the calibration on
the reference checkpoint."""
# Rows of real-weights.json by name.
REAL_WEIGHTS = {
    "gptq-int4-g32": "**mcpmq, GPTQ**, `int4-g32`, the default in ONNX",
    "gptq-iq4_nl": "**mcpmq, GPTQ**, `iq4_nl`, the default in GGUF",
    "gptq-q4_k": "**mcpmq, GPTQ**, `q4_k`, the default in GGUF for widths that it divides",
    "gptqmodel-gptq-desc-act": "GPTQModel, GPTQ with `desc_act`",
    "gptqmodel-gptq-act-group-aware": "GPTQModel, GPTQ with `act_group_aware`",
    "gptqmodel-gptq-mse": "GPTQModel, GPTQ with `act_group_aware` and `mse`",
    "gptqmodel-gptq": "GPTQModel, GPTQ",
    "llmcompressor-gptq": "llm-compressor, GPTQ",
    "autoround-200-steps": "AutoRound, 200 steps, W4A16 in groups of 32",
    "autoround-200-steps-q4_0": "AutoRound, 200 steps, GGUF Q4_0",
    "llama-quantize-iq4_nl": "llama-quantize, IQ4_NL with imatrix",
    "llama-quantize-q4_k": "llama-quantize, Q4_K with imatrix",
    "llama-quantize-q4_0": "llama-quantize, Q4_0 with imatrix",
    "rtn-int4-g32": "round to nearest, `int4-g32`",
}

# Rows of real-weights-all-layers.json by name.
ALL_LAYERS = {
    "gptq-q4_k-or-iq4_nl": "**mcpmq, GPTQ**, `q4_k or iq4_nl`, the default in GGUF",
    "gptq-int4": "**mcpmq, GPTQ**, `int4-g32`",
    "gptqmodel-gptq": "GPTQModel, GPTQ",
    "rtn-int4": "round to nearest, `int4-g32`",
}
ALL_LAYERS_NOTE = """\
On all layers of a pretrained language model, SmolLM2 with 135 million weights, with the same calibration tokens: mean
KL divergence on {tokens:,} held-out tokens of text ([conditions](benchmarks/README.md#real-weights)):"""
REQUIRED = {"gptq-iq4_nl", "gptqmodel-gptq-act-group-aware", "gptqmodel-gptq-mse", "llama-quantize-iq4_nl"}


def quality_table() -> str:
    """Return the comparison on pretrained weights if the tools are measured, otherwise on the reference checkpoint."""
    result = results.load()
    if {one["name"] for one in result["rows"]} >= REQUIRED:
        sentences = {"time": _time_sentence(result), "all_layers": _all_layers_sentence(result)}
        note = REAL_WEIGHTS_NOTE.format(**result["test"], **sentences)
        return f"{real_weights_table(result)}\n\n{note}"
    return f"{reference_table()}\n\n{PEERS_NOTE}\n\n{_all_layers_list()}"


def _time_sentence(result: Mapping[str, Any]) -> str:
    """Return the processor time of AutoRound divided by that of mcpmq, if it is measured."""
    seconds = {one["name"]: one["cost"]["processor_seconds"] for one in result["rows"]}
    slow, fast = (seconds.get(name) for name in ("autoround-200-steps-q4_0", "gptq-iq4_nl"))
    return f" AutoRound takes {slow / fast:.0f} times the processor time of mcpmq." if slow and fast else ""


def _all_layers_sentence(result: Mapping[str, Any]) -> str:
    """Return the mean KLD of the default and of GPTQModel on all layers, if both are measured."""
    rows = {one["name"]: one for one in result["rows"]}
    found = [rows.get(f"{name}-all-layers") for name in ("gptq-iq4_nl-model-targets", "gptqmodel-gptq-act-group-aware")]
    if None in found:
        return ""
    ours, other = (thousandths(Estimate.model_validate(one["kl_divergence"])) for one in found if one)
    return f"With all layers, `iq4_nl` by mcpmq has {ours}, GPTQModel with `act_group_aware` {other}."


def _all_layers_list() -> str:
    """Return the mean KLD of tools on all layers of the pretrained model, in llama.cpp, by KLD."""
    result = load_result("real-weights-all-layers")
    measured = {one["name"]: one for one in result["rows"] if one["format"] == "gguf"}
    found = sorted(
        (value.value, f"- {label}: {thousandths(value)}")
        for name, label in ALL_LAYERS.items()
        for value in [Estimate.model_validate(measured[name]["kl_divergence"])]
    )
    note = ALL_LAYERS_NOTE.format(**result["test"])
    return "\n".join([f"{note}\n", *(line for _, line in found)])


def reference_table() -> str:
    """Return the mean KLD of every tool on image and text answers, and on image answers without channel scales."""
    rows = sorted([*_peer_rows(), *_llama_quantize_rows()], key=lambda row: row[0])
    return table(["", "calibration", "images", "text", "images, unscaled"], [row for _, row in rows], 2)


def _peer_rows() -> Iterator[tuple[float, list[str]]]:
    """Yield the mean KLD of image answers, and the cells."""
    variants = {
        (one["model"], one["tool"], one["method"], one["calibration_data"]): one
        for one in load_result("peers")["variants"]
    }
    for key, label in PEERS.items():
        reference, unscaled = (variants.get((model, *key)) for model in ("reference", "unscaled"))
        if reference:
            image, text = (_divergence(reference, group) for group in ("image", "text"))
            last = thousandths(_divergence(unscaled, "image")) if unscaled else ""
            yield image.value, [label, key[2], thousandths(image), thousandths(text), last]


def _llama_quantize_rows() -> Iterator[tuple[float, list[str]]]:
    for one in load_result("methods")["rows"]:
        key = one["method"], one["calibration_data"]
        if one["scheme"] == "q4_k" and one["smooth"] == "none" and key in LLAMA_QUANTIZE:
            image, text = (_divergence(one, group) for group in ("image", "text"))
            yield image.value, [LLAMA_QUANTIZE[key], key[1], thousandths(image), thousandths(text), ""]


def _divergence(result: Mapping[str, Any], group: str) -> Estimate:
    return estimates(result["groups"][group])["kl_divergence"]


def real_weights_table(result: Mapping[str, Any]) -> str:
    """Return mean KLD and change of perplexity of every tool on pretrained weights, by KLD."""
    rows = []
    for label, one in _real_weights_rows(result).items():
        found = estimates({key: one[key] for key in ("kl_divergence", "perplexity_ratio")})
        divergence, change = found["kl_divergence"], percent_change(found["perplexity_ratio"])
        rows.append(
            (divergence.value, [label, f"{one['bits_per_weight']:.2f}", thousandths(divergence), f"{change} %"])
        )
    headings = ["", "bits per weight", "mean KLD", "perplexity change"]
    return table(headings, [cells for _, cells in sorted(rows, key=lambda row: row[0])], 1)


def _real_weights_rows(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the results in GGUF by label."""
    measured = {one["name"]: one for one in reversed(result["rows"]) if one["format"] == "gguf"}
    return {label: measured[name] for name, label in REAL_WEIGHTS.items() if name in measured}
