"""The variants: scheme of every matrix, method, calibration size, model, tool and commit.

They are in the order of their value, so that an interrupted run has the most important ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

COLUMNS_256, QWEN = "smollm2-padded", "qwen25"  # a model that K-quants fit, another language model
WITH_IMAGES = "smollm2-images"  # with the trained vision encoder
NUM_LAYERS, QWEN_LAYERS = 30, 24
CALIBRATION_SAMPLES, TEST_SAMPLES, QUICK_TEST_SAMPLES = 32, 24, 8
CURVE_SAMPLES = (10, 4, 64, 16, 128, 256)  # about 2.7k, 1k, 17k, 4k, 34k and 69k tokens
WHISPER_TEST_SAMPLES = 16
EARLIER = "11b7677"  # the last commit before the scales and codes were improved after GPTQ
# llama-quantize's Q4_K_M of a model with 30 layers: more bits for attention.v and mlp.down in 14 of them.
MORE_BITS_LAYERS = (0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29)
Q4_K_M = {"language.*": "q4_k"} | {
    f"language.layers.{layer}.{matrix}": "q6_k" for layer in MORE_BITS_LAYERS for matrix in ("attention.v", "mlp.down")
}
# 4.9 bits: the same matrices have more bits, in all layers, and the others fewer.
IQ4_XS_Q6_K = {"language.*": "iq4_xs", "language.layers.*.attention.v": "q6_k", "language.layers.*.mlp.down": "q6_k"}
QWEN_SOME_LAYERS = (4, 12, 20)
MIXTURES: Mapping[str, Mapping[str, str]] = {"q4_k_m": Q4_K_M, "iq4_xs + q6_k": IQ4_XS_Q6_K}
THIRD_OF_LAYERS = tuple(range(1, NUM_LAYERS, 3))
SOME_LAYERS = (5, 15, 25)  # the others are kept: a row takes minutes of one core, also of slow tools

CALIBRATION_IMAGES, TEST_IMAGES = 128, 160  # the first have about as many tokens as the texts of calibration

Tool = Literal["mcpmq", "llama-quantize", "ik-llama", "gptqmodel", "autoround", "llmcompressor"]
CalibrationKind = Literal["text", "images", "both"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantize a model; `weights` maps globs to schemes.

    The tool is `mcpmq`, at `commit` if it is not empty; `llama-quantize`, whose blocks ggml computes; `ik-llama`, with
    types of its own; or a tool of benchmarks/peers with `options`. The weights of other tools, and of mcpmq if
    `as_float32`, are measured as float32, whose products do not round activations.
    """

    name: str
    weights: Mapping[str, str]
    method: str
    smooth: str = "none"
    targets: Literal["layer", "model"] = "layer"
    samples: int = CALIBRATION_SAMPLES  # of calibration, texts or images; 0: none
    calibration: CalibrationKind = "text"
    formats: tuple[str, ...] = ("gguf",)
    model: str = "smollm2"
    commit: str = ""
    tool: Tool = "mcpmq"
    as_float32: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """The scheme of all matrices, or the name of a mixture."""
        return next(
            (name for name, mixture in MIXTURES.items() if self.weights is mixture), next(iter(self.weights.values()))
        )

    @property
    def layers(self) -> int:
        """The number of quantized layers."""
        every = QWEN_LAYERS if self.model == QWEN else NUM_LAYERS
        some = sum(glob.startswith("language.layers.") for glob in self.weights)
        return every if "language.*" in self.weights else some


def _all(scheme: str) -> dict[str, str]:
    return {"language.*": scheme}


def _some(scheme: str, layers: Sequence[int] = SOME_LAYERS) -> dict[str, str]:
    return {f"language.layers.{layer}.*": scheme for layer in layers}


def _gptq(scheme: str, model: str = "smollm2", samples: int = CALIBRATION_SAMPLES) -> Variant:
    size = "" if samples == CALIBRATION_SAMPLES else f"-{samples}-samples"
    return Variant(f"gptq-{scheme}{size}", _some(scheme), "gptq", targets="model", samples=samples, model=model)


def _llama_quantize(scheme: str, model: str = "smollm2") -> Variant:
    return Variant(f"llama-quantize-{scheme}", _some(scheme), "imatrix", model=model, tool="llama-quantize")


def _ik_llama(scheme: str) -> Variant:
    return Variant(f"ik-llama-{scheme}", _some(scheme), "imatrix", model=COLUMNS_256, tool="ik-llama")


def _peer(tool: Tool, name: str, options: Mapping[str, object], all_layers: bool = False) -> Variant:
    """Return a variant of a peer."""
    if all_layers:
        return Variant(f"{tool}-{name}-all-layers", _all("int4-g32"), name, tool=tool, options=options)
    return Variant(f"{tool}-{name}", _some("int4-g32"), name, tool=tool, options={"layers": SOME_LAYERS, **options})


def _all_layers(name: str, scheme: str, method: str, **more: Any) -> Variant:
    weights = MIXTURES.get(scheme) or _all(scheme)
    return Variant(f"{name}-all-layers", weights, method, samples=0 if method == "rtn" else CALIBRATION_SAMPLES, **more)


# The KL divergences of the others are divided by that of the first variant, in its first format.
VARIANTS = (
    _gptq("iq4_nl"),
    _peer("gptqmodel", "gptq-act-group-aware", {}),
    _llama_quantize("iq4_nl"),
    _llama_quantize("q4_0"),
    Variant("rtn-int4-g32", _some("int4-g32"), "rtn", samples=0),
    _gptq("int4-g32"),
    *(_gptq("iq4_nl", samples=samples) for samples in CURVE_SAMPLES[:4]),
    _peer("gptqmodel", "gptq-mse", {"mse": 2.4}),
    _peer("gptqmodel", "gptq-desc-act", {"desc_act": True, "act_group_aware": False}),
    _peer("gptqmodel", "gptq", {"act_group_aware": False}),
    *(
        one
        for scheme in ("q4_k", "iq3_s", "q2_k", "q6_k", "iq4_xs", "q3_k", "q5_k")
        for one in (_gptq(scheme, COLUMNS_256), _llama_quantize(scheme, COLUMNS_256))
    ),
    Variant("rtn-int8-g32", _some("int8-g32"), "rtn", samples=0),
    _llama_quantize("q8_0"),
    _peer("llmcompressor", "gptq", {}),
    _peer("autoround", "200-steps", {"iters": 200}),
    Variant(
        *("autoround-200-steps-q4_0", _some("q4_0"), "200-steps"),
        tool="autoround",
        options={"layers": SOME_LAYERS, "iters": 200, "scheme": "GGUF:Q4_0"},
    ),
    *(replace(_gptq(one, COLUMNS_256), name=f"gptq-{one}-as-float32", as_float32=True) for one in ("q5_k", "q6_k")),
    *map(_ik_llama, ("iq4_kt", "iq3_kt", "iq4_ks", "iq2_kt")),
    *(_gptq("iq4_nl", samples=samples) for samples in CURVE_SAMPLES[4:]),
    Variant("gptq-int4-g32-earlier", _some("int4-g32"), "gptq", commit=EARLIER),
    Variant("gptq-iq4_nl-earlier", _some("iq4_nl"), "gptq", commit=EARLIER),
    _gptq("int8-g32"),
    Variant("gptq-int4-g128", _some("int4-g128"), "gptq", targets="model", formats=("onnx",)),
    Variant("awq-gptq-int4-g32", _some("int4-g32"), "gptq", smooth="awq", targets="model"),
    _all_layers("gptq-iq4_nl-model-targets", "iq4_nl", "gptq", targets="model"),
    _all_layers("gptq-iq4_nl", "iq4_nl", "gptq"),
    _all_layers("gptq-int4-g32-model-targets", "int4-g32", "gptq", targets="model"),
    _all_layers("gptq-int4-g32", "int4-g32", "gptq", formats=("gguf", "onnx")),
    _all_layers("gptq-int4-g32-earlier", "int4-g32", "gptq", commit=EARLIER),
    _peer("gptqmodel", "gptq-act-group-aware", {}, all_layers=True),
    _all_layers("gptq-q4_k_m-model-targets", "q4_k_m", "gptq", model=COLUMNS_256, targets="model"),
    _all_layers("gptq-iq4_xs-q6_k-model-targets", "iq4_xs + q6_k", "gptq", model=COLUMNS_256, targets="model"),
    _all_layers("llama-quantize-q4_k_m", "q4_k_m", "imatrix", tool="llama-quantize", model=COLUMNS_256),
    _all_layers("rtn-int8-g32", "int8-g32", "rtn"),
    _all_layers("rtn-int8-g32-as-float32", "int8-g32", "rtn", as_float32=True),
    _all_layers("gptq-int8-g32-model-targets-as-float32", "int8-g32", "gptq", targets="model", as_float32=True),
    _all_layers("rtn-f32", "f32", "rtn"),  # the error of the engine alone
)


def _images(
    name: str, language: str, vision: str = "", calibration: CalibrationKind | None = None, **more: Any
) -> Variant:
    """Return a variant of the model with images; a component without a scheme is kept."""
    weights = {"vision.*": vision, "projector.*": vision} if vision else {}
    if language:
        weights = (_all(language) if "all-layers" in name else _some(language, THIRD_OF_LAYERS)) | weights
    samples = {None: 0, "text": CALIBRATION_SAMPLES}.get(calibration, CALIBRATION_IMAGES)
    method, kind = "gptq" if calibration else "rtn", calibration or "text"
    more |= {"targets": "model" if calibration else "layer", "calibration": kind, "model": WITH_IMAGES}
    return Variant(f"images-{name}", weights, method, samples=samples, **more)


# The KL divergences of the others are divided by that of the first.
IMAGE_VARIANTS = (
    _images("gptq-int4-g32-text", "int4-g32", calibration="text"),
    _images("gptq-int4-g32-images", "int4-g32", calibration="images"),
    _images("rtn-int4-g32", "int4-g32"),
    _images("gptq-iq4_nl-both", "iq4_nl", calibration="both"),
    _images("vision-rtn-int8-g32", "", "int8-g32"),
    _images("vision-rtn-int4-g32", "", "int4-g32"),
    _images("rtn-f32-all-layers", "f32", "f32", formats=("gguf", "onnx")),  # the error of the engines alone
    _images("gptq-int4-g32-both", "int4-g32", calibration="both"),
    _images("vision-gptq-int4-g32", "", "int4-g32", "images"),
    _images("vision-gptq-q4_k", "", "q4_k", "images"),
    _images("gptq-int4-g32-text-all-layers", "int4-g32", calibration="text"),
    _images("gptq-int4-g32-images-all-layers", "int4-g32", calibration="images"),
    _images("rtn-int4-g32-all-layers", "int4-g32"),
    _images("gptq-iq4_nl-vision-int8-g32-all-layers", "iq4_nl", "int8-g32", "both"),
)
QUICK = ("gptq-int4-g32", "rtn-int4-g32")


def _qwen(name: str, scheme: str, method: str = "gptq", **more: Any) -> Variant:
    samples = 0 if method == "rtn" else CALIBRATION_SAMPLES
    weights = _all(scheme) if name.endswith("all-layers") else _some(scheme, QWEN_SOME_LAYERS)
    return Variant(f"qwen-{name}", weights, method, samples=samples, model=QWEN, **more)


QWEN_VARIANTS = (
    _qwen("gptq-iq4_nl", "iq4_nl", targets="model"),
    _qwen("gptq-iq4_nl-layer-targets", "iq4_nl"),
    _qwen("gptq-int4-g32", "int4-g32", targets="model"),
    _qwen("rtn-int4-g32", "int4-g32", "rtn"),
    _qwen("gptq-int4-g32-earlier", "int4-g32", commit=EARLIER),
    _qwen("gptq-iq4_nl-all-layers", "iq4_nl"),
    _qwen("gptq-iq4_nl-model-targets-all-layers", "iq4_nl", targets="model"),
)
LLAMA_QUANTIZE: Final = "llama-quantize"  # the method of Whisper: rtn-imatrix with the search of ggml


@dataclass(frozen=True, slots=True)
class WhisperVariant:
    """One way to quantize the decoder of Whisper, by the present sources or those of a commit."""

    scheme: str
    method: str
    samples: int = CALIBRATION_SAMPLES
    commit: str = ""

    @property
    def name(self) -> str:
        """The name of the row, and of the file with its values."""
        size = "" if self.samples == CALIBRATION_SAMPLES else f"-{self.samples}-samples"
        return f"{self.scheme}-{self.method}{size}" + "-earlier" * bool(self.commit)


def _whisper(method: str, *schemes: str) -> list[WhisperVariant]:
    return [WhisperVariant(scheme, method) for scheme in schemes]


# As above, the first is the base of the ratios. Those with the same calibration set run in one process.
WHISPER_VARIANTS = (
    *_whisper("gptq", "iq4_nl", "q2_k", "iq3_s", "q6_k"),
    *_whisper(LLAMA_QUANTIZE, "iq4_nl", "q2_k", "iq3_s", "q6_k", "q4_k", "q4_0"),
    *(WhisperVariant("iq4_nl", "gptq", samples) for samples in (10, 4, 16, 64, 128)),
    *_whisper("gptq", "q4_k", "int4-g32", "iq4_xs", "q3_k", "q5_k", "q8_0"),
    *_whisper(LLAMA_QUANTIZE, "iq4_xs", "q3_k", "q5_k", "q8_0"),
    *_whisper("rtn", "int4-g32", "iq4_nl"),
    *(WhisperVariant(scheme, "gptq", commit=EARLIER) for scheme in ("int4-g32", "iq4_nl", "q4_k")),
)
