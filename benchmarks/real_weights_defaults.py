"""The table of benchmarks/README.md with the defaults that follow from rows on real weights."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.markdown import table
from benchmarks.real_weights import results

MODEL_TARGETS, LAYER_TARGETS = '`targets = "model"`', '`targets = "layer"`'


@dataclass(frozen=True, slots=True)
class Default:
    """A default, its alternative, and the rows that compare them, by name."""

    default: str
    alternative: str
    row: str
    alternative_row: str


DEFAULTS = (
    Default(
        f"{MODEL_TARGETS} in GGUF", LAYER_TARGETS, "gptq-iq4_nl-model-targets-all-layers", "gptq-iq4_nl-all-layers"
    ),
    Default(
        f"{MODEL_TARGETS} in ONNX, gptq, awq and compressed-tensors",
        LAYER_TARGETS,
        "gptq-int4-g32-model-targets-all-layers",
        "gptq-int4-g32-all-layers",
    ),
    Default(
        "`iq4_nl` in GGUF if 256 does not divide the columns",
        "`int4-g32`",
        "gptq-iq4_nl-model-targets-all-layers",
        "gptq-int4-g32-model-targets-all-layers",
    ),
    Default("`q4_k` in GGUF if 256 divides the columns", "`int4-g32`", "gptq-q4_k", "gptq-int4-g32"),
    Default("`q4_k` in GGUF if 256 divides the columns", "`iq4_nl`", "gptq-q4_k", "gptq-iq4_nl"),
    Default("no smoothing", "`awq`", "gptq-int4-g32", "awq-gptq-int4-g32"),
    Default("GPTQ at 4 bits", "round to nearest", "gptq-int4-g32", "rtn-int4-g32"),
    Default("groups of 32 in ONNX", "`int4-g128`", "gptq-int4-g32", "gptq-int4-g128"),
    Default(
        "round to nearest at 8 bits, in seconds",
        "GPTQ",
        "rtn-int8-g32-as-float32-all-layers",
        "gptq-int8-g32-model-targets-as-float32-all-layers",
    ),
    Default(f"{MODEL_TARGETS}, on Qwen2.5", LAYER_TARGETS, "qwen-gptq-iq4_nl", "qwen-gptq-iq4_nl-layer-targets"),
)


def defaults_table() -> str:
    """Return the ratio of the divergence of every default to that of its alternative, where both are measured."""
    return table(["default", "instead of", "rows", "ratio of the KLD [95 %]"], list(_cells()), 3)


def _cells() -> Iterator[list[str]]:
    result = results.load()
    rows = {row["name"]: row for row in reversed([*result["rows"], *result["qwen"]])}
    for one in DEFAULTS:
        if one.row in rows and one.alternative_row in rows:
            found = results.ratio(rows[one.row], rows[one.alternative_row])
            names = f"`{one.row}` / `{one.alternative_row}`"
            yield [one.default, one.alternative, names, f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"]
