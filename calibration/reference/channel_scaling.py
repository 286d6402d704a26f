"""Scale the channels of trained weights as in large models without changing the function, and write the checkpoint.

    python -m calibration.reference.channel_scaling

Quantization hardly changes weights that a short training left close to their random initialization. In large models a
few input channels are much stronger than the others, which makes quantization harder. This script divides every input
channel of a linear layer by a random factor and multiplies the preceding layer by it, which preserves the function.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from calibration.reference.batched_vision import batched_features
from calibration.reference.checkpoint_files import build_model, model_config, write_checkpoint
from calibration.reference.samples import draw_single, scene_batch, text_batch
from calibration.reference.tokenizer import UNKNOWN, token_id
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration

Weights = dict[str, Tensor]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class ScaleDistribution:
    """Factors exp(normal(0, sigma)); a share of them is `outlier_factor` times larger."""

    sigma: float = 0.9
    outlier_share: float = 0.02
    outlier_factor: float = 4.0
    seed: int = 4


@dataclass(frozen=True)
class HeadCounts:
    """Number of query heads and of key-value heads."""

    query: int
    key_value: int


def random_scales(count: int, spread: ScaleDistribution, generator: torch.Generator) -> Tensor:
    """Return positive float32 factors [count]."""
    usual = torch.exp(torch.randn(count, generator=generator) * spread.sigma)
    chosen = torch.rand(count, generator=generator) < spread.outlier_share
    return torch.where(chosen, usual * spread.outlier_factor, usual)


def scale_norm(weights: Weights, norm: str, linears: list[str], factor: Tensor) -> None:
    """Multiply the weight of a norm by the factor and divide the columns of the linear layers that read it."""
    weights[norm] *= factor
    for linear in linears:
        weights[linear] /= factor


def scale_values(weights: Weights, attention: str, factor: Tensor, heads: HeadCounts) -> None:
    """Multiply the rows of v by the factor and divide the columns of o for all query heads of a key-value head."""
    weights[f"{attention}.v_proj.weight"] *= factor[:, None]
    weights[f"{attention}.v_proj.bias"] *= factor
    shared = factor.view(heads.key_value, 1, -1).expand(-1, heads.query // heads.key_value, -1)
    weights[f"{attention}.o_proj.weight"] /= shared.reshape(-1)


def scale_feed_forward(weights: Weights, feed_forward: str, factor: Tensor) -> None:
    """Multiply the rows of up by the factor and divide the columns of down."""
    weights[f"{feed_forward}.up_proj.weight"] *= factor[:, None]
    weights[f"{feed_forward}.down_proj.weight"] /= factor


def scale_layer(
    weights: Weights, layer: str, spread: ScaleDistribution, heads: HeadCounts, generator: torch.Generator
) -> None:
    """Scale all four groups of linear layers of one decoder layer, in place."""
    attention, feed_forward = f"{layer}.self_attn", f"{layer}.mlp"
    hidden = weights[f"{layer}.input_layernorm.weight"].numel()
    readers = [f"{attention}.{name}_proj.weight" for name in "qkv"]
    scale_norm(weights, f"{layer}.input_layernorm.weight", readers, random_scales(hidden, spread, generator))
    readers = [f"{feed_forward}.{name}_proj.weight" for name in ("gate", "up")]
    scale_norm(weights, f"{layer}.post_attention_layernorm.weight", readers, random_scales(hidden, spread, generator))
    values = weights[f"{attention}.v_proj.weight"].shape[0]
    scale_values(weights, attention, random_scales(values, spread, generator), heads)
    inner = weights[f"{feed_forward}.up_proj.weight"].shape[0]
    scale_feed_forward(weights, feed_forward, random_scales(inner, spread, generator))


def scale_channels(weights: Weights, spread: ScaleDistribution, layers: int, heads: HeadCounts) -> Weights:
    """Return a copy of float32 weights with all decoder layers scaled."""
    generator = torch.Generator().manual_seed(spread.seed)
    copies = {name: weight.clone() for name, weight in weights.items()}
    for layer in range(layers):
        scale_layer(copies, f"llm.model.layers.{layer}", spread, heads, generator)
    return copies


@torch.no_grad()
def sample_logits(model: MiniCPMVForConditionalGeneration, tokenizer: Tokenizer) -> Tensor:
    """Return the logits of eight image questions and eight texts."""
    rng = random.Random("fold")
    images, text = scene_batch(tokenizer, draw_single(rng, 8)), text_batch(tokenizer, rng, 8)
    assert images.pixels is not None
    embeddings = model.get_input_embeddings()(images.ids)
    place = images.ids.eq(token_id(tokenizer, UNKNOWN))[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(place, batched_features(model, images.pixels))
    logits = (model.llm(inputs_embeds=embeddings).logits, model.llm(input_ids=text.ids).logits)
    return torch.cat([part.flatten(0, 1) for part in logits])


def max_logit_difference(weights: Weights, changed: Weights, tokenizer: Tokenizer) -> float:
    """Return the largest logit difference between two sets of float32 weights."""
    model = build_model(model_config(tokenizer)).eval()
    model.load_state_dict(weights)
    before = sample_logits(model, tokenizer)
    model.load_state_dict(changed)
    return float((sample_logits(model, tokenizer) - before).abs().max())


def trained_weights(work: Path) -> Weights:
    """Return the weights of a finished training or of its last saved state."""
    finished = work / "trained.safetensors"
    if finished.exists():
        return load_file(finished)
    prefix = "value.model."
    state = load_file(work / "state.safetensors")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    usual = ScaleDistribution()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/reference"), help="folder of the training")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the checkpoint")
    parser.add_argument("--sigma", type=float, default=usual.sigma)
    parser.add_argument("--share", type=float, default=usual.outlier_share)
    parser.add_argument("--outlier", type=float, default=usual.outlier_factor)
    return parser.parse_args()


def main() -> None:
    """Scale the weights, check the logits, and write the checkpoint.

    Raises:
        ValueError: a logit changed by more than 1e-3.
    """
    options = parse_arguments()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    weights = trained_weights(options.work)
    config = model_config(tokenizer)
    heads = HeadCounts(config["num_attention_heads"], config["num_key_value_heads"])
    spread = ScaleDistribution(options.sigma, options.share, options.outlier)
    changed = scale_channels(weights, spread, config["num_hidden_layers"], heads)
    difference = max_logit_difference(weights, changed, tokenizer)
    if difference > 1e-3:
        raise ValueError(f"channel scaling changed a logit by {difference:.2e}")
    write_checkpoint(changed, tokenizer, options.out)
    print(f"{spread}: largest logit difference {difference:.1e}; written to {options.out}")


if __name__ == "__main__":
    main()
