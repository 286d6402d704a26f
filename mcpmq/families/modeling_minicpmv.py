"""Torch model of MiniCPM-V 2.5, 2.6, 4.0 and 4.5 (images and text), built from transformers classes.

Transformers has no class for these checkpoints, and their remote code does not run on current versions. The model has
three parts with the published tensor names: `llm` (a causal language model of transformers), `vpm` (SigLIP on packed
patches) and `resampler` (cross-attention). The class is not registered with the transformers Auto classes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6VisionModel

from mcpmq.families.minicpmv import version_of
from mcpmq.families.resampler import RESAMPLER_HEAD_DIM

__all__ = ["MiniCPMVConfig", "MiniCPMVForConditionalGeneration", "Resampler", "build", "sincos_2d"]

LANGUAGE_MODELS = {"2.5": "llama", "2.6": "qwen2", "4.0": "llama", "4.5": "qwen3"}
SINCOS_BASE = 10000.0

# Keys of config.json for the whole model; all other keys belong to the language model.
TOP_LEVEL_KEYS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "batch_vision_input",
        "drop_vision_last_layer",
        "image_size",
        "model_type",
        "patch_size",
        "query_num",
        "slice_config",
        "slice_mode",
        "transformers_version",
        "use_image_id",
        "version",
        "vision_batch_size",
        "vision_config",
    }
)


def language_model_type(version: str | float) -> str:
    """Return the transformers model type of the language model of a MiniCPM-V version."""
    return LANGUAGE_MODELS[f"{float(version):.1f}"]


class MiniCPMVConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The published config.json, split into a vision and a language configuration.

    Raises:
        KeyError: the version is not supported.
    """

    model_type = "minicpmv"

    def __init__(
        self,
        version: str | float = 2.6,
        vision_config: dict[str, Any] | None = None,
        text_config: dict[str, Any] | None = None,
        query_num: int = 64,
        drop_vision_last_layer: bool = False,
        **keys: Any,
    ) -> None:
        flat = {key: keys.pop(key) for key in list(keys) if key not in TOP_LEVEL_KEYS and not key.startswith("_")}
        language = dict(text_config or flat)
        language_type = language.pop("model_type", None) or language_model_type(version)
        vision = {key: value for key, value in dict(vision_config or {}).items() if key != "model_type"}
        self.version = version
        self.query_num = query_num
        self.drop_vision_last_layer = drop_vision_last_layer
        self.text_config = CONFIG_MAPPING[language_type](**language)
        self.vision_config = MiniCPMV4_6VisionConfig(**vision)
        keys["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        keys.setdefault("dtype", self.text_config.dtype)
        super().__init__(**keys)

    def get_text_config(self, *_: Any, **__: Any) -> PreTrainedConfig:
        """Return the configuration of the language model."""
        return self.text_config


def sincos_1d(length: int, channels: int, device: torch.device) -> Tensor:
    """Compute the sine, then the cosine embedding of the positions on one axis: float32 [length, channels]."""
    frequency = SINCOS_BASE ** -(torch.arange(channels // 2, dtype=torch.float32, device=device) / (channels / 2))
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sincos_2d(height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Compute the position embedding of a grid of patches, column then row channels: [height * width, channels]."""
    columns = sincos_1d(width, channels // 2, device).unsqueeze(0).expand(height, -1, -1)
    rows = sincos_1d(height, channels // 2, device).unsqueeze(1).expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).to(dtype)


class Resampler(nn.Module):
    """Cross-attention of learned queries to the patches of one slice."""

    def __init__(self, query_num: int, channels: int, vision_channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(query_num, channels))
        self.kv_proj = nn.Linear(vision_channels, channels, bias=False)
        self.attn = nn.MultiheadAttention(channels, channels // RESAMPLER_HEAD_DIM)
        self.ln_q = nn.LayerNorm(channels, eps=1e-6)
        self.ln_kv = nn.LayerNorm(channels, eps=1e-6)
        self.ln_post = nn.LayerNorm(channels, eps=1e-6)
        self.proj = nn.Parameter(torch.randn(channels, channels) * channels**-0.5)

    def forward(self, patches: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Map packed patches [sum(h * w), vision_channels] of slices `sizes` (h, w) to [slices, queries, channels]."""
        query = self.ln_q(self.query)
        values = self.ln_kv(self.kv_proj(patches)).split([height * width for height, width in sizes])
        attended = [self.attend(query, value, size) for value, size in zip(values, sizes, strict=True)]
        resampled: Tensor = self.ln_post(torch.stack(attended)) @ self.proj
        return resampled

    def attend(self, query: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend to one slice, value [h * w, channels], and return [queries, channels].

        The position embedding is added to the keys only.
        """
        key = value + sincos_2d(*size, value.shape[-1], value.device, value.dtype)
        attended: Tensor = self.attn(query, key, value, need_weights=False)[0]
        return attended


def build_language_model(config: PreTrainedConfig) -> Any:
    """Build the causal language model of transformers in torch's default dtype."""
    # Without dtype, the one of the configuration is used, which can differ from that of the vision encoder.
    return AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype())  # type: ignore[no-untyped-call]


def build_vision_tower(config: MiniCPMV4_6VisionConfig, drop_last_layer: bool) -> MiniCPMV4_6VisionModel:
    """Build SigLIP from the class of MiniCPM-V 4.6, without its merger."""
    vision: MiniCPMV4_6VisionModel = MiniCPMV4_6VisionModel._from_config(config)  # type: ignore[no-untyped-call]
    del vision.vit_merger
    if drop_last_layer:
        vision.encoder.layers = vision.encoder.layers[:-1]
    return vision


class MiniCPMVForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Causal language model with image input; batch size 1, any number of slices."""

    config_class: type[MiniCPMVConfig] = MiniCPMVConfig
    config: MiniCPMVConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules: list[str] = []  # noqa: RUF012 - the base class declares it like this
    _supports_sdpa = True
    media_arguments: tuple[str, ...] = ("pixel_values", "target_sizes", "image_bound")

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        self.llm = build_language_model(config.text_config)
        self.vpm, self.resampler = self.build_vision(config)
        self.post_init()  # type: ignore[no-untyped-call]

    @staticmethod
    def build_vision(config: MiniCPMVConfig) -> tuple[Any, Resampler]:
        """Build the vision encoder and the resampler."""
        resampler = Resampler(config.query_num, config.text_config.hidden_size, config.vision_config.hidden_size)
        return build_vision_tower(config.vision_config, config.drop_vision_last_layer), resampler

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the language model."""
        embedding: nn.Module = self.llm.get_input_embeddings()
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """Return the head of the language model."""
        head: nn.Module = self.llm.get_output_embeddings()
        return head

    def embed_token_ids(self, tokens: Tensor) -> Tensor:
        """Look up token ids [1, tokens]: [1, tokens, hidden]."""
        embeddings: Tensor = self.get_input_embeddings()(tokens)
        return embeddings

    def position_grid_sizes(self, target_sizes: Tensor) -> Tensor:
        """Return the grid for the position embeddings of the vision encoder, int64 [slices, 2].

        Version 2.5 was trained with all patches of a slice in one row.
        """
        if float(self.config.version) != 2.5:
            return target_sizes
        return torch.stack([torch.ones_like(target_sizes[:, 0]), target_sizes.prod(dim=-1)], dim=-1)

    def get_image_features(self, pixel_values: Tensor, target_sizes: Tensor) -> Tensor:
        """Encode packed slices [1, 3, 14, 14 * sum(h * w)] with sizes int64 [slices, 2]: [slices, queries, hidden]."""
        pixels = pixel_values.to(self.vpm.embeddings.patch_embedding.weight.dtype)
        patches = self.vpm(pixels, target_sizes=self.position_grid_sizes(target_sizes), use_vit_merger=False)
        sizes = [(int(height), int(width)) for height, width in target_sizes.tolist()]
        features: Tensor = self.resampler(patches.last_hidden_state[0], sizes)
        return features

    @staticmethod
    def insert_features(embeddings: Tensor, features: Iterable[Tensor], bounds: Tensor) -> Tensor:
        """Replace spans [spans, 2] of embeddings [1, tokens, hidden] by features [tokens of the span, hidden] each."""
        placed = embeddings.clone()
        for feature, (start, end) in zip(features, bounds.tolist(), strict=True):
            placed[0, start:end] = feature.to(placed.dtype)
        return placed

    def embed_with_images(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        target_sizes: Tensor | None,
        image_bound: Tensor | None,
    ) -> Tensor:
        """Return embeddings [1, tokens, hidden] with image features; the arguments are those of `forward`."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_token_ids(input_ids)
        if pixel_values is None:
            return inputs_embeds
        if target_sizes is None or image_bound is None or inputs_embeds.shape[0] != 1:
            raise ValueError("pixel_values requires target_sizes, image_bound and a batch size of 1")
        return self.insert_features(inputs_embeds, self.get_image_features(pixel_values, target_sizes), image_bound)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        target_sizes: Tensor | None = None,
        image_bound: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **language_arguments: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of one sample.

        input_ids int64 [1, tokens] or inputs_embeds [1, tokens, hidden]; with an image also pixel_values
        [1, 3, 14, 14 * sum(h * w)], target_sizes int64 [slices, 2] in patches and image_bound int64 [slices, 2], the
        first and past-the-last token of each slice. Other arguments are passed to the language model.
        """
        media = pixel_values, target_sizes, image_bound
        inputs_embeds = self.embed_with_images(input_ids, inputs_embeds, *media)
        output: CausalLMOutputWithPast = self.llm(inputs_embeds=inputs_embeds, **language_arguments)
        return output

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model inputs of one generation step; images are an input of the first step only."""
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        inputs = prepare(*args, **kwargs)
        if kwargs.get("is_first_iteration") or not kwargs.get("use_cache", True):
            return inputs
        return {**inputs, **dict.fromkeys(self.media_arguments)}


def build(config: Mapping[str, Any]) -> MiniCPMVForConditionalGeneration:
    """Build the float32 model of a raw config.json: parameters on the meta device, buffers on the CPU."""
    return build_on_meta(MiniCPMVForConditionalGeneration, {**config, "version": version_of(config)})


def build_on_meta(
    model_class: type[MiniCPMVForConditionalGeneration], config: Mapping[str, Any]
) -> MiniCPMVForConditionalGeneration:
    """Build a model class: parameters on the meta device, buffers on the CPU."""
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    rotary = model.llm.model.rotary_emb
    # Rotary frequencies are computed buffers; loading weights would leave them on the meta device.
    model.llm.model.rotary_emb = type(rotary)(rotary.config)
    model.train(False)
    return model
