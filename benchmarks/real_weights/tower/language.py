"""The frozen language model, SmolLM2 with M-RoPE, for batches of sequences with branches; only inputs get gradients."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.real_weights import smollm2

SHA256 = "2994469dadfb7fd85bc08be2967517a5b8861b7fae8460921282197527ac263c"  # of the float32 weights
Layer = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Attention:
    """Cosine and sine of the positions, and the mask that is added to scores, of a batch."""

    cosine: Tensor
    sine: Tensor
    mask: Tensor

    @classmethod
    def of_batch(cls, positions: Tensor, branch: Tensor, dtype: torch.dtype) -> "Attention":
        """Return those of positions [3, sequences, tokens] and branches [sequences, tokens]."""
        half = smollm2.HEAD_DIM // 2
        exponents = torch.arange(half, device=positions.device) / half
        angles = positions[..., None].float() / smollm2.ROPE_THETA**exponents
        parts = [part[axis] for axis, part in enumerate(angles.split(smollm2.MROPE_SECTION, dim=-1))]
        angle = torch.cat(parts, dim=-1)[:, None]
        own = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
        mask = torch.zeros(own.shape, device=own.device, dtype=dtype).masked_fill(~own.tril(), float("-inf"))
        return cls(angle.cos().to(dtype), angle.sin().to(dtype), mask[:, None])


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of float32 weights by their names."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(name.encode())
        found.update(value.contiguous().numpy().data)
    return found.hexdigest()


class LanguageModel:
    """The weights by layer, with joined matrices of equal inputs."""

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self.layers = [
            {name: value.to(device, dtype) for name, value in _layer(weights, number).items()}
            for number in range(_count_layers(weights))
        ]
        self.embedding = weights["model.embed_tokens.weight"].to(device, dtype)
        self.norm = weights["model.norm.weight"].to(device, dtype)
        self.dtype = dtype

    def embed(self, ids: Tensor, features: Tensor, image_token: int) -> Tensor:
        """Return embeddings [sequences, tokens, channels], those of image tokens replaced by features in order."""
        embedded = functional.embedding(ids, self.embedding)
        image = ids.eq(image_token)[..., None].expand_as(embedded)
        return embedded.masked_scatter(image, features.to(self.dtype))

    def logits(self, embedded: Tensor, attention: Attention, places: Tensor) -> Tensor:
        """Return the float32 logits at flat token indices."""
        states = embedded
        for layer in self.layers:
            states = _run_layer(layer, states, attention)
        chosen = _normalized(states.flatten(0, 1)[places], self.norm)
        return functional.linear(chosen, self.embedding).float()


def _count_layers(weights: Mapping[str, Tensor]) -> int:
    return sum(name.endswith("input_layernorm.weight") for name in weights)


def _layer(weights: Mapping[str, Tensor], number: int) -> Layer:
    def joined(*names: str) -> Tensor:
        return torch.cat([weights[f"model.layers.{number}.{name}.weight"] for name in names])

    return {
        "norm1": joined("input_layernorm"),
        "qkv": joined(*(f"self_attn.{kind}_proj" for kind in "qkv")),
        "o": joined("self_attn.o_proj"),
        "norm2": joined("post_attention_layernorm"),
        "gate_up": joined("mlp.gate_proj", "mlp.up_proj"),
        "down": joined("mlp.down_proj"),
    }


def _run_layer(layer: Layer, states: Tensor, attention: Attention) -> Tensor:
    sizes = [count * smollm2.HEAD_DIM for count in (smollm2.HEADS, smollm2.KV_HEADS, smollm2.KV_HEADS)]
    joined = functional.linear(_normalized(states, layer["norm1"]), layer["qkv"]).split(sizes, dim=-1)
    query, key, value = (_split_heads(one) for one in joined)
    query, key = (_rotated(one, attention) for one in (query, key))
    key, value = (one.repeat_interleave(smollm2.HEADS // smollm2.KV_HEADS, dim=1) for one in (key, value))
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention.mask)
    states = states + functional.linear(mixed.transpose(1, 2).flatten(2), layer["o"])
    gate, up = functional.linear(_normalized(states, layer["norm2"]), layer["gate_up"]).chunk(2, dim=-1)
    return states + functional.linear(functional.silu(gate) * up, layer["down"])


def _split_heads(states: Tensor) -> Tensor:
    heads: Tensor = states.unflatten(-1, (-1, smollm2.HEAD_DIM)).transpose(1, 2)
    return heads


def _normalized(states: Tensor, gain: Tensor) -> Tensor:
    return functional.rms_norm(states, gain.shape, gain, smollm2.NORM_EPSILON)


def _rotated(states: Tensor, attention: Attention) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    turned = first * attention.cosine - second * attention.sine, second * attention.cosine + first * attention.sine
    return torch.cat(turned, dim=-1)


def word_embeddings(embedding: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean embedding of every word's tokens, float32 [words, channels]."""
    return torch.stack([embedding[list(one)].float().mean(0) for one in ids])


def random_weights(num_layers: int, vocabulary: int = smollm2.VOCABULARY, ffn: int = smollm2.FFN) -> dict[str, Tensor]:
    """Return random float32 weights with the names and sizes of SmolLM2, to test training without its package."""
    random = torch.Generator().manual_seed(0)
    hidden, key = smollm2.HIDDEN, smollm2.KV_HEADS * smollm2.HEAD_DIM
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    found = {"model.embed_tokens.weight": 0.1 * torch.randn(vocabulary, hidden, generator=random)}
    for layer in range(num_layers):
        for name, size in sizes.items():
            values = torch.randn(*size, generator=random) / size[1] ** 0.5
            found[f"model.layers.{layer}.{name}.weight"] = values
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden)
    return found | {"model.norm.weight": torch.ones(hidden)}
