"""MiniCPM-V 2.5, 2.6, 4.0, 4.5 and MiniCPM-o 2.6: SigLIP and a resampler before Llama, Qwen2, MiniCPM4 or Qwen3."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from mcpmq.families.checked import LanguageConfig, Width, checked, refuse_keys, text_keys
from mcpmq.families.family import Architecture, Family, LanguageShape, Pixels, Processor, TensorSpec
from mcpmq.families.folds import GATED_LANGUAGE, RESAMPLER, SIGLIP
from mcpmq.families.siglip import Siglip, siglip
from mcpmq.families.tensors import decoder, layer_norm, matrix

HEAD_WIDTH_OF_RESAMPLER = 128


class _Config(LanguageConfig):
    hidden_size: Annotated[Width, Field(multiple_of=HEAD_WIDTH_OF_RESAMPLER)]
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_config: Siglip


@dataclass(frozen=True, slots=True)
class _Differences:
    """What the members of the line differ in."""

    architecture: str
    attention_bias: bool = False
    qk_norm: bool = False
    permuted_rope: bool = False
    one_row: bool = False
    head_width: int | None = None  # where a configuration does not say it; None: the hidden size over the heads


def version_of(config: Mapping[str, Any]) -> str:
    """`2.6` of a raw config.json that has it as a number, as a text, or, being of 2.0 or 2.5, not at all."""
    version = config.get("version")
    if version is None:
        return "2.0" if (config.get("hidden_size"), config.get("query_num")) == (2304, 64) else "2.5"
    return f"{version}.0" if str(version).isdigit() else str(version)


def _recognises(version: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: config.get("model_type") == "minicpmv" and version_of(config) == version


def _architecture(name: str, differences: _Differences) -> Callable[[Mapping[str, Any]], Architecture]:
    def architecture(config: Mapping[str, Any]) -> Architecture:
        """Sizes from a raw config.json.

        Raises:
            CheckpointError: a size is missing, out of range, or asks for what the family does not have.
        """
        sizes = checked(_Config, text_keys(config))
        refuse_keys(config, name, "tie_word_embeddings", "drop_vision_last_layer")
        sides = {"slice_side": sizes.image_size, "queries": sizes.query_num, "one_row": differences.one_row}
        vision = sizes.vision_config.shape("siglip-resampler", **sides)
        return Architecture(_language_shape(sizes, differences), vision)

    return architecture


def _language_shape(config: _Config, differences: _Differences) -> LanguageShape:
    return LanguageShape(
        architecture=differences.architecture,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.head_dim or differences.head_width or config.head_width,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        rope_theta=config.frequency_base,
        rope_factors=config.rope.short_factor,
        rope_long_factors=config.rope.long_factor,
        norm_epsilon=config.rms_norm_eps,
        attention_bias=differences.attention_bias,
        qk_norm=differences.qk_norm,
        permuted_rope=differences.permuted_rope,
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *siglip(architecture.sees, "vpm"),
        *resampler(architecture),
        *decoder(architecture.language, "llm.model", head="llm.lm_head.weight"),
    )


def resampler(architecture: Architecture) -> Iterator[TensorSpec]:
    """Queries that look at the patches of a slice."""
    width, shape = architecture.language.hidden, architecture.sees
    yield TensorSpec("projector.query", "resampler.query", (shape.queries, width))
    yield from matrix("projector.kv", "resampler.kv_proj", (width, shape.hidden), bias=False)
    for norm in ("q", "kv", "post"):
        yield from layer_norm(f"projector.norm_{norm}", f"resampler.ln_{norm}", width)
    yield TensorSpec("projector.attention.qkv", "resampler.attn.in_proj_weight", (3 * width, width), "matrix")
    yield TensorSpec("projector.attention.qkv.bias", "resampler.attn.in_proj_bias", (3 * width,))
    yield from matrix("projector.attention.o", "resampler.attn.out_proj", (width, width))
    yield TensorSpec("projector.out", "resampler.proj", (width, width), "matrix", transposed=True)


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor

    return MiniCpmVProcessor.open(checkpoint)


def _processor_of_2_5(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import Layout, MiniCpmVProcessor

    return MiniCpmVProcessor.open(checkpoint, Layout("<|eot_id|>", numbered=False, slices_as_images=True))


def _pixels(folder: Path) -> Pixels:
    from mcpmq.families.slicing import Slicing

    return Slicing.open(folder)


def _family(
    version: str,
    differences: _Differences,
    *published: str,
    llama_cpp: int,
    processor: Callable[[Path], Processor] = _processor,
    caveats: tuple[tuple[str, str], ...] = (),
) -> Family:
    name = f"minicpm-v-{version}"
    return Family(
        name=name,
        published=published,
        recognises=_recognises(version),
        architecture=_architecture(name, differences),
        tensors=_tensors,
        processor=processor,
        pixels=_pixels,
        native="mcpmq.families.minicpmv_native:build",
        llama_cpp_version=llama_cpp,
        caveats=caveats,
        fed_by=(("resampler.proj", "resampler.ln_post"),),
        folds=(*GATED_LANGUAGE, *SIGLIP, *RESAMPLER),
    )


MINICPM_V_2_5 = _family(
    "2.5",
    _Differences("llama", permuted_rope=True, one_row=True),
    "openbmb/MiniCPM-Llama3-V-2_5",
    llama_cpp=2,
    processor=_processor_of_2_5,
    caveats=(("gguf", "llama.cpp places the patches of a slice in two dimensions, the original counts them in one"),),
)
MINICPM_V_2_6 = _family("2.6", _Differences("qwen2", attention_bias=True), "openbmb/MiniCPM-V-2_6", llama_cpp=3)
MINICPM_V_4_0 = _family("4.0", _Differences("llama", permuted_rope=True), "openbmb/MiniCPM-V-4", llama_cpp=5)
MINICPM_V_4_5 = _family(
    "4.5", _Differences("qwen3", qk_norm=True, head_width=128), "openbmb/MiniCPM-V-4_5", llama_cpp=6
)
MINICPM_O_2_6 = replace(
    MINICPM_V_2_6,
    name="minicpm-o-2.6",
    published=("openbmb/MiniCPM-o-2_6",),
    recognises=lambda config: config.get("model_type") == "minicpmo" and version_of(config) == "2.6",
    llama_cpp_version=4,
    passed_through=(("audio", "apm"), ("audio", "audio_projection_layer"), ("speech", "tts")),
    caveats=tuple((name, "images and text only: what hears and speaks is left out") for name in ("gguf", "onnx")),
)
