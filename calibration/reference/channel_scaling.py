"""Gives trained weights the channel spread of large models without changing the function, and writes the checkpoint.

    python -m calibration.reference.channel_scaling

Weights that a short training left near their random start hardly suffer from quantization; those of large models do,
because a few input channels are far stronger than the rest. Here every input channel of a linear is divided by a random
factor, and the layer before is multiplied by it: exactly the same function, weights that are as hard to quantize.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from calibration.reference.checkpoint_files import build_model, model_config, write_checkpoint
from calibration.reference.samples import draw_single, scene_batch, text_batch
from calibration.reference.tokenizer import UNKNOWN
from calibration.reference.vision_probe import batched_features
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration

Weights = dict[str, Tensor]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Spread:
    """Factors exp(normal(0, sigma)); a share of them is `outlier` times larger still."""

    sigma: float = 0.9
    share: float = 0.02
    outlier: float = 4.0
    seed: int = 4


@dataclass(frozen=True)
class Heads:
    """Query heads, and the key-value heads that they share."""

    query: int
    key_value: int


def factors(count: int, spread: Spread, generator: torch.Generator) -> Tensor:
    """Positive float32 [count]."""
    usual = torch.exp(torch.randn(count, generator=generator) * spread.sigma)
    chosen = torch.rand(count, generator=generator) < spread.share
    return torch.where(chosen, usual * spread.outlier, usual)


def fold_norm(weights: Weights, norm: str, linears: list[str], factor: Tensor) -> None:
    """Gain times factor, columns of the linears that read it divided."""
    weights[norm] *= factor
    for linear in linears:
        weights[linear] /= factor


def fold_values(weights: Weights, attention: str, factor: Tensor, heads: Heads) -> None:
    """Rows of v times factor; columns of o divided, once for every query head that shares a key-value head."""
    weights[f"{attention}.v_proj.weight"] *= factor[:, None]
    weights[f"{attention}.v_proj.bias"] *= factor
    shared = factor.view(heads.key_value, 1, -1).expand(-1, heads.query // heads.key_value, -1)
    weights[f"{attention}.o_proj.weight"] /= shared.reshape(-1)


def fold_feed_forward(weights: Weights, feed_forward: str, factor: Tensor) -> None:
    """Rows of up times factor, columns of down divided; the gate's nonlinearity lies elsewhere."""
    weights[f"{feed_forward}.up_proj.weight"] *= factor[:, None]
    weights[f"{feed_forward}.down_proj.weight"] /= factor


def fold_layer(weights: Weights, layer: str, spread: Spread, heads: Heads, generator: torch.Generator) -> None:
    """All four groups of linears of one layer, in place."""
    attention, feed_forward = f"{layer}.self_attn", f"{layer}.mlp"
    hidden = weights[f"{layer}.input_layernorm.weight"].numel()
    readers = [f"{attention}.{name}_proj.weight" for name in "qkv"]
    fold_norm(weights, f"{layer}.input_layernorm.weight", readers, factors(hidden, spread, generator))
    readers = [f"{feed_forward}.{name}_proj.weight" for name in ("gate", "up")]
    fold_norm(weights, f"{layer}.post_attention_layernorm.weight", readers, factors(hidden, spread, generator))
    values = weights[f"{attention}.v_proj.weight"].shape[0]
    fold_values(weights, attention, factors(values, spread, generator), heads)
    inner = weights[f"{feed_forward}.up_proj.weight"].shape[0]
    fold_feed_forward(weights, feed_forward, factors(inner, spread, generator))


def folded(weights: Weights, spread: Spread, layers: int, heads: Heads) -> Weights:
    """A copy of float32 weights with every layer of the language model folded."""
    generator = torch.Generator().manual_seed(spread.seed)
    copies = {name: weight.clone() for name, weight in weights.items()}
    for layer in range(layers):
        fold_layer(copies, f"llm.model.layers.{layer}", spread, heads, generator)
    return copies


@torch.no_grad()
def some_logits(model: MiniCPMVForConditionalGeneration, tokenizer: Tokenizer) -> Tensor:
    """Logits of eight questions about pictures and eight texts."""
    rng = random.Random("fold")
    seen, text = scene_batch(tokenizer, draw_single(rng, 8)), text_batch(tokenizer, rng, 8)
    assert seen.pixels is not None
    embeddings = model.get_input_embeddings()(seen.ids)
    place = (seen.ids == tokenizer.token_to_id(UNKNOWN))[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(place, batched_features(model, seen.pixels))
    logits = (model.llm(inputs_embeds=embeddings).logits, model.llm(input_ids=text.ids).logits)
    return torch.cat([part.flatten(0, 1) for part in logits])


def fold_difference(weights: Weights, changed: Weights, tokenizer: Tokenizer) -> float:
    """Largest difference of any logit between two sets of weights, float32."""
    model = build_model(model_config(tokenizer)).eval()
    model.load_state_dict(weights)
    before = some_logits(model, tokenizer)
    model.load_state_dict(changed)
    return float((some_logits(model, tokenizer) - before).abs().max())


def trained_weights(work: Path) -> Weights:
    """The weights of a finished training, or of one under way."""
    finished = work / "trained.safetensors"
    if finished.exists():
        return load_file(finished)
    prefix = "value.model."
    state = load_file(work / "state.safetensors")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def parse() -> argparse.Namespace:
    """The options."""
    usual = Spread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build/reference"), help="where the training left its weights"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where the checkpoint goes")
    parser.add_argument("--sigma", type=float, default=usual.sigma)
    parser.add_argument("--share", type=float, default=usual.share)
    parser.add_argument("--outlier", type=float, default=usual.outlier)
    return parser.parse_args()


def main() -> None:
    """Fold, prove that nothing changed, write."""
    options = parse()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    weights = trained_weights(options.work)
    config = model_config(tokenizer)
    heads = Heads(config["num_attention_heads"], config["num_key_value_heads"])
    spread = Spread(options.sigma, options.share, options.outlier)
    changed = folded(weights, spread, config["num_hidden_layers"], heads)
    difference = fold_difference(weights, changed, tokenizer)
    if difference > 1e-3:
        raise ValueError(f"the fold changed a logit by {difference:.2e}")
    write_checkpoint(changed, tokenizer, options.out)
    print(f"{spread}: largest change of a logit {difference:.1e}; written to {options.out}")


if __name__ == "__main__":
    main()
