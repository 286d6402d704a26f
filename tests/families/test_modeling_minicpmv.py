"""Torch model of MiniCPM-V, compared with a functional implementation in this file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mcpmq.checkpoint import Checkpoint
from mcpmq.families.modeling_minicpmv import MiniCPMVConfig, MiniCPMVForConditionalGeneration, build, sincos_2d
from tests.tiny import CONFIG, random_tensors

HEADS, PATCH, GRID = 4, 14, 70


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Tensors of the tiny checkpoint by hub name, float32."""
    return {name: tensor.float() for name, tensor in random_tensors(CONFIG, seed=0).items()}


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor]) -> MiniCPMVForConditionalGeneration:
    """Torch model with these weights."""
    model = MiniCPMVForConditionalGeneration(MiniCPMVConfig(**CONFIG))
    model.float().eval()
    model.load_state_dict(weights, strict=True)
    return model


def _packed(slices: list[Tensor]) -> Tensor:
    rows = [image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH) for image in slices]
    return torch.cat([row.reshape(3, -1, PATCH, PATCH).transpose(1, 2).reshape(3, PATCH, -1) for row in rows], -1)[None]


def _norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    scores = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
    mixed: Tensor = (scores @ v).transpose(0, 1).flatten(1)
    return mixed


def _tower(image: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Encode one slice [3, height, width] with SigLIP: [patches, hidden]."""
    embedding = "vpm.embeddings.patch_embedding"
    x = functional.conv2d(image[None], weights[f"{embedding}.weight"], weights[f"{embedding}.bias"], stride=PATCH)[0]
    height, width = x.shape[1:]
    cells = [GRID * (GRID * i // height) + GRID * j // width for i in range(height) for j in range(width)]
    x = x.flatten(1).T + weights["vpm.embeddings.position_embedding.weight"][cells]
    for layer in range(CONFIG["vision_config"]["num_hidden_layers"]):
        name = f"vpm.encoder.layers.{layer}"
        y = _norm(x, weights, f"{name}.layer_norm1")
        q, k, v = (_linear(y, weights, f"{name}.self_attn.{letter}_proj") for letter in "qkv")
        x = x + _linear(_attention(q, k, v, HEADS), weights, f"{name}.self_attn.out_proj")
        y = _linear(_norm(x, weights, f"{name}.layer_norm2"), weights, f"{name}.mlp.fc1")
        x = x + _linear(functional.gelu(y, approximate="tanh"), weights, f"{name}.mlp.fc2")
    return _norm(x, weights, "vpm.post_layernorm")


def _position(height: int, width: int, channels: int) -> Tensor:
    """Compute the 2D position embedding in a loop: columns in the first half of the channels, rows in the second."""
    quarter = channels // 4
    code = np.zeros((height * width, channels))
    for row in range(height):
        for column in range(width):
            for half, coordinate in enumerate((column, row)):
                for index in range(quarter):
                    angle = coordinate / 10000 ** (index / quarter)
                    code[row * width + column, half * channels // 2 + index] = np.sin(angle)
                    code[row * width + column, half * channels // 2 + quarter + index] = np.cos(angle)
    return torch.from_numpy(code).float()


def _resampled(patches: Tensor, size: tuple[int, int], weights: dict[str, Tensor]) -> Tensor:
    values = _norm(_linear(patches, weights, "resampler.kv_proj"), weights, "resampler.ln_kv")
    query = _norm(weights["resampler.query"], weights, "resampler.ln_q")
    projections = zip(
        weights["resampler.attn.in_proj_weight"].chunk(3), weights["resampler.attn.in_proj_bias"].chunk(3), strict=True
    )
    inputs = (query, values + _position(*size, values.shape[1]), values)
    q, k, v = (functional.linear(x, weight, bias) for x, (weight, bias) in zip(inputs, projections, strict=True))
    out = _linear(_attention(q, k, v, values.shape[1] // 128), weights, "resampler.attn.out_proj")
    return _norm(out, weights, "resampler.ln_post") @ weights["resampler.proj"]


@pytest.mark.parametrize("sizes", [[(4, 4)], [(3, 5), (4, 4), (4, 4)], [(1, 9)], [(7, 2), (2, 7)]])
def test_image_features_are_those_of_the_published_model(
    model: MiniCPMVForConditionalGeneration, weights: dict[str, Tensor], sizes: list[tuple[int, int]]
) -> None:
    """Packed slices of several shapes have the features of the separately encoded slices."""
    generator = torch.Generator().manual_seed(5)
    slices = [torch.rand(3, 14 * height, 14 * width, generator=generator) * 2 - 1 for height, width in sizes]
    expected = [_resampled(_tower(image, weights), size, weights) for image, size in zip(slices, sizes, strict=True)]

    with torch.inference_mode():
        found = model.get_image_features(_packed(slices), torch.tensor(sizes))

    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (32, 32)])
def test_position_embeddings_are_2d_sine_and_cosine(size: tuple[int, int]) -> None:
    """They agree with a loop over columns and rows."""
    code = sincos_2d(*size, 256, torch.device("cpu"), torch.float32)

    torch.testing.assert_close(code, _position(*size, 256), rtol=0, atol=2e-6)


def test_image_features_replace_the_image_tokens(model: MiniCPMVForConditionalGeneration) -> None:
    """The logits depend on the image but not on the ids of the replaced tokens."""
    pixels, sizes, bounds = torch.rand(1, 3, 14, 14 * 16), torch.tensor([[4, 4]]), torch.tensor([[2, 6]])
    tokens = torch.arange(10)[None]
    other = tokens.clone()
    other[0, 2:6] = 99
    with torch.inference_mode():
        first = model(tokens, pixels, sizes, bounds).logits
        second = model(other, pixels, sizes, bounds).logits
        without = model(tokens).logits

    assert torch.equal(first, second)
    assert not torch.allclose(first[0, 6:], without[0, 6:], atol=1e-3)


def test_pixels_without_bounds_are_rejected(model: MiniCPMVForConditionalGeneration) -> None:
    """`pixel_values` without `image_bound` raises ValueError."""
    with pytest.raises(ValueError, match="image_bound"):
        model(torch.arange(10)[None], torch.rand(1, 3, 14, 14 * 16))


def test_the_meta_model_has_the_tensors_of_the_checkpoint(tiny_checkpoint: Path) -> None:
    """Names and shapes are those of the checkpoint, and no parameter is allocated."""
    checkpoint = Checkpoint.open(tiny_checkpoint)

    built = build(json.loads((tiny_checkpoint / "config.json").read_text()))

    assert all(tensor.is_meta for tensor in built.parameters())
    assert {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()} == {
        spec.hub_name: spec.shape for spec in checkpoint.specs
    }


def test_generation_with_a_cache_equals_generation_without(model: MiniCPMVForConditionalGeneration) -> None:
    """Greedy decoding after an image gives the same tokens with and without the KV cache."""
    torch.manual_seed(1)
    inputs = {
        "input_ids": torch.arange(10)[None],
        "pixel_values": torch.rand(1, 3, 14, 14 * 16) * 2 - 1,
        "target_sizes": torch.tensor([[4, 4]]),
        "image_bound": torch.tensor([[2, 6]]),
    }
    generator: Any = model
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        cached = generator.generate(**inputs, **settings, use_cache=True)
        plain = generator.generate(**inputs, **settings, use_cache=False)

    assert torch.equal(cached, plain)
