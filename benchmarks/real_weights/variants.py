"""The variants: scheme of every matrix, method, calibration size, model, tool and commit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CALIBRATION_SAMPLES, TEST_SAMPLES = 32, 64
QUICK_TEST_SAMPLES = 16
CURVE_SAMPLES = (4, 16, 128)  # about 1k, 4k and 34k tokens
WHISPER_TEST_SAMPLES = 16
EARLIER = "11b7677"  # the last commit before the scales and codes were improved after GPTQ
# llama-quantize's Q4_K_M of a model with 30 layers: more bits for attention.v and mlp.down in 14 of them.
MORE_BITS_LAYERS = (0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29)
Q4_K_M = {"language.*": "q4_k"} | {
    f"language.layers.{layer}.{matrix}": "q6_k" for layer in MORE_BITS_LAYERS for matrix in ("attention.v", "mlp.down")
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantize the language model; `weights` maps globs to schemes.

    The tool is `mcpmq`, at `commit` if it is not empty, or a tool of benchmarks/peers with `options`.
    """

    name: str
    weights: Mapping[str, str]
    method: str
    smooth: str = "none"
    samples: int = CALIBRATION_SAMPLES  # of calibration; 0: none
    formats: tuple[str, ...] = ("gguf",)
    model: str = "smollm2"
    commit: str = ""
    tool: str = "mcpmq"
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """The scheme of most matrices, or `q4_k_m`."""
        return "q4_k_m" if self.weights is Q4_K_M else self.weights["language.*"]


def _all(scheme: str) -> dict[str, str]:
    return {"language.*": scheme}


def _curve(sizes: Sequence[int], commit: str = "") -> list[Variant]:
    suffix = "-earlier" if commit else ""
    return [
        Variant(f"gptq-int4-{size}-samples{suffix}", _all("int4-g32"), "gptq", samples=size, commit=commit)
        for size in sizes
    ]


def _peer(name: str, options: Mapping[str, object], tool: str = "gptqmodel") -> Variant:
    return Variant(f"{tool}-{name}", _all("int4-g32"), name, tool=tool, options=options)


# The KL divergences of the others are divided by that of the first variant, in its first format.
VARIANTS = (
    Variant("gptq-int4-earlier", _all("int4-g32"), "gptq", commit=EARLIER, formats=("gguf", "onnx")),
    Variant("gptq-iq4_nl-earlier", _all("iq4_nl"), "gptq", commit=EARLIER),
    Variant("rtn-int4", _all("int4-g32"), "rtn", samples=0, commit=EARLIER),
    Variant("gptq-int4", _all("int4-g32"), "gptq"),
    Variant("gptq-iq4_nl", _all("iq4_nl"), "gptq"),
    Variant("gptq-q4_k-or-iq4_nl", _all("q4_k or iq4_nl"), "gptq"),
    Variant("gptq-q4_k", _all("q4_k"), "gptq", model="smollm2-padded"),
    _peer("gptq", {}),
    _peer("gptq-desc-act", {"desc_act": True}),
    _peer("gptq-act-group-aware", {"act_group_aware": True, "desc_act": False}),
    _peer("gptq-mse", {"mse": 2.4}),
    Variant("imatrix-iq4_nl", _all("iq4_nl"), "rtn-imatrix", commit=EARLIER),
    Variant("imatrix-q4_k_m", Q4_K_M, "rtn-imatrix", model="smollm2-padded", commit=EARLIER),
    Variant("gptq-q4_k_m", Q4_K_M, "gptq", model="smollm2-padded"),
    Variant("awq-gptq-int4", _all("int4-g32"), "gptq", smooth="awq"),
    Variant("rtn-int8", _all("int8-g32"), "rtn", samples=0, commit=EARLIER),
    Variant("gptq-int8", _all("int8-g32"), "gptq"),
    *_curve(CURVE_SAMPLES[:2], EARLIER),
    *_curve(CURVE_SAMPLES),
)
QUICK = ("gptq-int4", "rtn-int4")
# Commit, scheme and method; as above, the first is the base of the ratios.
WHISPER_VARIANTS = (
    (EARLIER, "int4-g32", "gptq"),
    (EARLIER, "iq4_nl", "gptq"),
    (EARLIER, "q4_k", "gptq"),
    (EARLIER, "int4-g32", "rtn"),
    (EARLIER, "q4_0", "rtn-imatrix"),
    (EARLIER, "iq4_nl", "rtn-imatrix"),
    (EARLIER, "q4_k", "rtn-imatrix"),
    ("", "int4-g32", "gptq"),
    ("", "iq4_nl", "gptq"),
    ("", "q4_k", "gptq"),
)
