"""Torch model of MiniCPM-V 2.0, compared with transformers, Pillow and a functional implementation in this file."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from mcpmq.families.modeling_minicpmv import sincos_2d
from mcpmq.families.modeling_minicpmv2 import build
from tests.tiny import random_tensors
from tests.tiny_families import MINICPM_V_2_CONFIG as CONFIG

WIDTH, HEADS, HIDDEN, CELLS = 64, 4, 512, 5
SIZES = [(4, 4), (5, 5), (2, 9), (7, 3), (1, 1)]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Tensors of the tiny checkpoint by hub name, float32."""
    return {name: tensor.float() for name, tensor in random_tensors(CONFIG, seed=0).items()}


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> Any:
    """Torch model with these weights."""
    model = build(CONFIG)
    renamed = {name.replace("vpm.pos_embed", "vpm.patch_embed.pos_embed"): value for name, value in weights.items()}
    model.load_state_dict(renamed, strict=True, assign=True)
    return model


@pytest.fixture(scope="module")
def siglip(weights: dict[str, Tensor]) -> Any:
    """SigLIP of transformers with the same weights, in separate query, key and value matrices."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 144,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
    }
    config = SiglipVisionConfig(**sizes, image_size=14 * CELLS, patch_size=14, hidden_act="gelu")
    tower = SiglipVisionModel(config).eval()
    renamed = dict(_siglip_names(weights))
    prefix = "vision_model." if hasattr(tower, "vision_model") else ""
    missing, unexpected = tower.load_state_dict({prefix + name: value for name, value in renamed.items()}, strict=False)
    assert not unexpected
    assert all("head" in name for name in missing)  # the pooling head is not used
    return getattr(tower, "vision_model", tower)


def _siglip_names(weights: dict[str, Tensor]) -> Any:
    for name, value in weights.items():
        layer = name.removeprefix("vpm.blocks.").replace("norm", "layer_norm")
        if name.startswith("vpm.blocks.") and "attn.qkv" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                yield f"encoder.layers.{layer.replace('attn.qkv', f'self_attn.{letter}_proj')}", part
        elif name.startswith("vpm.blocks."):
            yield f"encoder.layers.{layer.replace('attn.proj', 'self_attn.out_proj')}", value
    for kind in ("weight", "bias"):
        yield f"embeddings.patch_embedding.{kind}", weights[f"vpm.patch_embed.proj.{kind}"]
        yield f"post_layernorm.{kind}", weights[f"vpm.norm.{kind}"]
    yield "embeddings.position_embedding.weight", weights["vpm.pos_embed"][0]


def _slices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(3, 14 * height, 14 * width, generator=generator) * 2 - 1 for height, width in SIZES]


def _packed(slices: list[Tensor]) -> Tensor:
    rows = [image.unfold(1, 14, 14).unfold(2, 14, 14).reshape(3, -1, 14, 14) for image in slices]
    return torch.cat([row.transpose(1, 2).reshape(3, 14, -1) for row in rows], -1)[None]


def _positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize each channel of position embeddings [1, cells, width] with Pillow: [h * w, width]."""
    channels = table[0].unflatten(0, (CELLS, CELLS)).permute(2, 0, 1).contiguous().numpy()
    resized = [np.array(Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC)) for one in channels]
    return torch.from_numpy(np.stack(resized)).flatten(1).T


def _tower(siglip: Any, image: Tensor, size: tuple[int, int], table: Tensor) -> Tensor:
    patches = siglip.embeddings.patch_embedding(image[None]).flatten(2).transpose(1, 2) + _positions(table, size)
    output: Tensor = siglip.post_layernorm(siglip.encoder(inputs_embeds=patches).last_hidden_state)[0]
    return output


def _norm(value: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(value, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def _resampled(patches: Tensor, size: tuple[int, int], weights: dict[str, Tensor]) -> Tensor:
    local = {name.removeprefix("resampler."): value for name, value in weights.items()}
    content = _norm(patches @ local["kv_proj.weight"].T, local, "ln_kv")
    query = _norm(local["query"], local, "ln_q") + local["pos_embed"]
    key = content + sincos_2d(*size, HIDDEN, content.device, content.dtype)
    matrices, biases = local["attn.in_proj_weight"].chunk(3), local["attn.in_proj_bias"].chunk(3)
    projections = zip((query, key, content), matrices, biases, strict=True)
    parts = [value @ matrix.T + bias for value, matrix, bias in projections]
    query, key, content = (part.unflatten(-1, (-1, 128)).transpose(0, 1) for part in parts)
    attended = ((query @ key.transpose(1, 2) * 128**-0.5).softmax(-1) @ content).transpose(0, 1).flatten(1)
    attended = attended @ local["attn.out_proj.weight"].T + local["attn.out_proj.bias"]
    return _norm(attended, local, "ln_post") @ local["proj"]


def test_the_vision_encoder_is_siglip_with_interpolated_positions(
    model: Any, siglip: Any, weights: dict[str, Tensor]
) -> None:
    """Packed slices, larger and smaller than the position grid, agree with SigLIP and Pillow."""
    with torch.inference_mode():
        found = model.vpm(_packed(_slices()), SIZES).split([height * width for height, width in SIZES])
        expected = [
            _tower(siglip, image, size, weights["vpm.pos_embed"]) for image, size in zip(_slices(), SIZES, strict=True)
        ]

    for actual, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=0, atol=2e-5)


def test_the_resampler_adds_positions_to_queries_and_keys(model: Any, weights: dict[str, Tensor]) -> None:
    """It agrees with a functional implementation."""
    generator = torch.Generator().manual_seed(6)
    patches = [torch.randn(height * width, WIDTH, generator=generator) for height, width in SIZES]

    with torch.inference_mode():
        found = model.resampler(torch.cat(patches), SIZES)

    expected = [_resampled(value, size, weights) for value, size in zip(patches, SIZES, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-5)


def _rms(value: Tensor, scale: Tensor) -> Tensor:
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + 1e-5) * scale


def _rotated(value: Tensor) -> Tensor:
    """Apply the rotary embedding to heads [heads, tokens, 64]."""
    angles = torch.arange(value.shape[1])[:, None] * 10000 ** -(torch.arange(0, 64, 2) / 64)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return value * cosine + torch.cat([-value[..., 32:], value[..., :32]], -1) * sine


def _logits(embeddings: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Compute the logits of MiniCPM from scaled embeddings [tokens, hidden]."""
    value, depth = embeddings, 1.4 / 2**0.5
    mask = torch.full((len(value), len(value)), -torch.inf).triu(1)
    for layer in range(2):
        local = {name.removeprefix(f"llm.model.layers.{layer}."): value for name, value in weights.items()}
        normed = _rms(value, local["input_layernorm.weight"])
        parts = [normed @ local[f"self_attn.{letter}_proj.weight"].T for letter in "qkv"]
        heads = [part.unflatten(-1, (8, 64)).transpose(0, 1) for part in parts]
        scores = (_rotated(heads[0]) @ _rotated(heads[1]).transpose(1, 2) / 8 + mask).softmax(-1)
        attended = (scores @ heads[2]).transpose(0, 1).flatten(1) @ local["self_attn.o_proj.weight"].T
        value = value + attended * depth
        normed = _rms(value, local["post_attention_layernorm.weight"])
        gate, up = (normed @ local[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        value = value + (functional.silu(gate) * up) @ local["mlp.down_proj.weight"].T * depth
    return _rms(value, weights["llm.model.norm.weight"]) / (HIDDEN / 256) @ weights["llm.lm_head.weight"].T


def test_token_embeddings_are_scaled_and_image_features_are_not(model: Any, weights: dict[str, Tensor]) -> None:
    """The logits agree with token embeddings scaled by 12 and unscaled image features."""
    tokens, bounds = torch.arange(40, 52)[None], torch.tensor([[3, 7]])
    image, size = _slices()[0], torch.tensor(SIZES[:1])
    with torch.inference_mode():
        features = model.get_image_features(_packed([image]), size)
        found = model(tokens, _packed([image]), size, bounds).logits[0]

        embeddings = weights["llm.model.embed_tokens.weight"][tokens[0]] * 12
        embeddings[3:7] = features[0]
        torch.testing.assert_close(found, _logits(embeddings, weights), rtol=0, atol=2e-5)


def test_generation_with_a_cache_equals_generation_without(model: Any) -> None:
    """Greedy decoding after an image gives the same tokens with and without the KV cache."""
    inputs = {
        "input_ids": torch.arange(40, 52)[None],
        "pixel_values": _packed(_slices()[:1]),
        "target_sizes": torch.tensor(SIZES[:1]),
        "image_bound": torch.tensor([[3, 7]]),
    }
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        cached = model.generate(**inputs, **settings, use_cache=True)
        plain = model.generate(**inputs, **settings, use_cache=False)

    assert torch.equal(cached, plain)
