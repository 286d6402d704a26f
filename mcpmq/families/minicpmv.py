"""MiniCPM-V 2.6: SigLIP slices, a resampler, and Qwen2."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from mcpmq.errors import CheckpointError
from mcpmq.families.family import Architecture, Family, LanguageShape, Processor, TensorSpec, VisionShape
from mcpmq.families.folds import GATED_LANGUAGE, RESAMPLER, SIGLIP

HEAD_WIDTH_OF_RESAMPLER = 128
LANGUAGE_LAYER = {
    "input_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
VISION_LAYER = {
    "norm1": "layer_norm1",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}

# GELU of zero is zero, so zero rows above and zero columns below leave every sum as it was.
HIDDEN_WIDTH_OF_VISION: dict[str, Literal["rows", "columns"]] = {"mlp.up": "rows", "mlp.down": "columns"}


class _Siglip(BaseModel):
    model_config = ConfigDict(extra="ignore")

    hidden_size: PositiveInt = Field(le=65536)
    num_hidden_layers: PositiveInt = Field(le=1000)
    num_attention_heads: PositiveInt = Field(le=1024)
    intermediate_size: PositiveInt = Field(le=1 << 20)
    patch_size: PositiveInt = Field(le=256)
    image_size: PositiveInt = Field(le=16384)
    layer_norm_eps: PositiveFloat = 1e-6


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore")

    hidden_size: PositiveInt = Field(le=65536, multiple_of=HEAD_WIDTH_OF_RESAMPLER)
    num_hidden_layers: PositiveInt = Field(le=1000)
    num_attention_heads: PositiveInt = Field(le=1024)
    num_key_value_heads: PositiveInt = Field(le=1024)
    intermediate_size: PositiveInt = Field(le=1 << 20)
    vocab_size: PositiveInt = Field(le=1 << 22)
    max_position_embeddings: PositiveInt = 32768
    rope_theta: PositiveFloat = 1e6
    rms_norm_eps: PositiveFloat = 1e-6
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_config: _Siglip


def _recognises(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "minicpmv" and str(config.get("version")) == "2.6"


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing, out of range, or asks for what 2.6 does not have.
    """
    try:
        checked = _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"`config.json`: {where}: {first['msg']}", "compare it with the published one") from error
    for key in ("tie_word_embeddings", "drop_vision_last_layer"):
        if config.get(key):
            raise CheckpointError(f"`config.json` sets `{key}`, which MiniCPM-V 2.6 does not have")
    return Architecture(_language_shape(checked), _vision_shape(checked))


def _language_shape(config: _Config) -> LanguageShape:
    return LanguageShape(
        architecture="qwen2",
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        rope_theta=config.rope_theta,
        norm_epsilon=config.rms_norm_eps,
        attention_bias=True,
    )


def _vision_shape(config: _Config) -> VisionShape:
    siglip = config.vision_config
    return VisionShape(
        hidden=siglip.hidden_size,
        layers=siglip.num_hidden_layers,
        heads=siglip.num_attention_heads,
        ffn=siglip.intermediate_size,
        patch=siglip.patch_size,
        grid=siglip.image_size // siglip.patch_size,
        slice_side=config.image_size,
        queries=config.query_num,
        norm_epsilon=siglip.layer_norm_eps,
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *_vision(architecture.vision),
        *_projector(architecture),
        TensorSpec(
            "embedding",
            "llm.model.embed_tokens.weight",
            (architecture.language.vocabulary, architecture.language.hidden),
            "table",
        ),
        *_language(architecture.language),
        TensorSpec(
            "head",
            "llm.lm_head.weight",
            (architecture.language.vocabulary, architecture.language.hidden),
            "matrix",
        ),
    )


def _matrix(
    name: str, hub_name: str, rows: int, columns: int, bias: bool, may_grow: Literal["rows", "columns"] | None = None
) -> Iterator[TensorSpec]:
    yield TensorSpec(name, f"{hub_name}.weight", (rows, columns), "matrix", may_grow=may_grow)
    if bias:
        yield TensorSpec(f"{name}.bias", f"{hub_name}.bias", (rows,), may_grow="rows" if may_grow == "rows" else None)


def _layer_norm(name: str, hub_name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(name, f"{hub_name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", f"{hub_name}.bias", (width,))


def _vision(shape: VisionShape) -> Iterator[TensorSpec]:
    patches = "vpm.embeddings.patch_embedding"
    yield TensorSpec("vision.patch_embedding", f"{patches}.weight", (shape.hidden, 3, shape.patch, shape.patch))
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.bias", (shape.hidden,))
    positions = "vpm.embeddings.position_embedding.weight"
    yield TensorSpec("vision.position_embedding", positions, (shape.grid**2, shape.hidden), "table")
    shapes = {"mlp.up": (shape.ffn, shape.hidden), "mlp.down": (shape.hidden, shape.ffn)}
    for layer in range(shape.layers):
        for name, hub_name in VISION_LAYER.items():
            full, hub = f"vision.layers.{layer}.{name}", f"vpm.encoder.layers.{layer}.{hub_name}"
            if name.startswith("norm"):
                yield from _layer_norm(full, hub, shape.hidden)
            else:
                sizes = shapes.get(name, (shape.hidden, shape.hidden))
                yield from _matrix(full, hub, *sizes, bias=True, may_grow=HIDDEN_WIDTH_OF_VISION.get(name))
    yield from _layer_norm("vision.post_norm", "vpm.post_layernorm", shape.hidden)


def _projector(architecture: Architecture) -> Iterator[TensorSpec]:
    width, shape = architecture.language.hidden, architecture.vision
    yield TensorSpec("projector.query", "resampler.query", (shape.queries, width))
    yield from _matrix("projector.kv", "resampler.kv_proj", width, shape.hidden, bias=False)
    for norm in ("q", "kv", "post"):
        yield from _layer_norm(f"projector.norm_{norm}", f"resampler.ln_{norm}", width)
    yield TensorSpec("projector.attention.qkv", "resampler.attn.in_proj_weight", (3 * width, width), "matrix")
    yield TensorSpec("projector.attention.qkv.bias", "resampler.attn.in_proj_bias", (3 * width,))
    yield from _matrix("projector.attention.o", "resampler.attn.out_proj", width, width, bias=True)
    yield TensorSpec("projector.out", "resampler.proj", (width, width), "matrix", transposed=True)


def _language(shape: LanguageShape) -> Iterator[TensorSpec]:
    kv_width = shape.kv_heads * shape.head_width
    shapes = {
        "attention.k": (kv_width, shape.hidden),
        "attention.v": (kv_width, shape.hidden),
        "mlp.gate": (shape.ffn, shape.hidden),
        "mlp.up": (shape.ffn, shape.hidden),
        "mlp.down": (shape.hidden, shape.ffn),
    }
    for layer in range(shape.layers):
        for name, hub_name in LANGUAGE_LAYER.items():
            full, hub = f"language.layers.{layer}.{name}", f"llm.model.layers.{layer}.{hub_name}"
            if name.endswith("norm"):
                yield TensorSpec(full, f"{hub}.weight", (shape.hidden,))
            else:
                bias = shape.attention_bias and name in ("attention.q", "attention.k", "attention.v")
                yield from _matrix(full, hub, *shapes.get(name, (shape.hidden, shape.hidden)), bias=bias)
    yield TensorSpec("language.norm", "llm.model.norm.weight", (shape.hidden,))


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor

    return MiniCpmVProcessor.open(checkpoint)


MINICPM_V_2_6 = Family(
    name="minicpm-v-2.6",
    recognises=_recognises,
    architecture=_architecture,
    tensors=_tensors,
    processor=_processor,
    native="mcpmq.families.minicpmv_native:build",
    fed_by=(("resampler.proj", "resampler.ln_post"),),
    folds=(*GATED_LANGUAGE, *SIGLIP, *RESAMPLER),
)
