"""Scale the channels of the trained audio reference as in large models, and write the checkpoint.

    python -m calibration.audio_reference.channel_scaling

Language layers are scaled as those of the image reference. In the audio encoder, the factors go from norms to the
matrices that read them, from values to the output of attention, and through the ReLU of the projector, which keeps
positive factors. The function is the same.
"""

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from calibration.audio_reference.checkpoint_files import build_model, model_config, write_checkpoint
from calibration.audio_reference.samples import make_batch, speech_sample
from calibration.audio_reference.train import TrainingModel
from calibration.reference.channel_scaling import (
    HeadCounts,
    ScaleDistribution,
    Weights,
    random_scales,
    scale_channels,
)

HERE = Path(__file__).parent
ENCODER, PROJECTOR = "apm", "audio_projection_layer"


def scale_layer_norm(weights: Weights, norm: str, readers: list[str], factor: Tensor) -> None:
    """Multiply a norm and its bias by the factor, and divide the columns of the matrices that read it."""
    weights[f"{norm}.weight"] *= factor
    weights[f"{norm}.bias"] *= factor
    for reader in readers:
        weights[f"{reader}.weight"] /= factor


def scale_rows(weights: Weights, matrix: str, reader: str, factor: Tensor) -> None:
    """Multiply the rows of a matrix and its bias by the factor, and divide the columns of the matrix that reads it."""
    weights[f"{matrix}.weight"] *= factor[:, None]
    weights[f"{matrix}.bias"] *= factor
    weights[f"{reader}.weight"] /= factor


def scale_audio(weights: Weights, spread: ScaleDistribution, layers: int) -> None:
    """Scale the layers of the audio encoder and its projector, in place."""
    generator = torch.Generator().manual_seed(spread.seed + 1)
    width = len(weights[f"{ENCODER}.layer_norm.weight"])
    for number in range(layers):
        layer, attention = f"{ENCODER}.layers.{number}", f"{ENCODER}.layers.{number}.self_attn"
        readers = [f"{attention}.{name}_proj" for name in "qkv"]
        scale_layer_norm(weights, f"{layer}.self_attn_layer_norm", readers, random_scales(width, spread, generator))
        scale_rows(weights, f"{attention}.v_proj", f"{attention}.out_proj", random_scales(width, spread, generator))
        scale_layer_norm(
            weights, f"{layer}.final_layer_norm", [f"{layer}.fc1"], random_scales(width, spread, generator)
        )
    scale_layer_norm(
        weights, f"{ENCODER}.layer_norm", [f"{PROJECTOR}.linear1"], random_scales(width, spread, generator)
    )
    inner = len(weights[f"{PROJECTOR}.linear1.bias"])
    scale_rows(weights, f"{PROJECTOR}.linear1", f"{PROJECTOR}.linear2", random_scales(inner, spread, generator))


@torch.no_grad()
def logits_of(weights: Weights, tokenizer: Tokenizer) -> Tensor:
    """Return the logits of the answers to eight questions about speech."""
    model = build_model(model_config(tokenizer)).eval()
    model.load_state_dict(weights)
    rng = random.Random("fold")
    batch = make_batch(tokenizer, [speech_sample(rng) for _ in range(8)], [], rng)
    return TrainingModel(model, tokenizer).logits(batch)


def main() -> None:
    """Scale the weights, check the logits, and write the checkpoint.

    Raises:
        ValueError: a logit changed by more than 1e-3.
    """
    usual = ScaleDistribution()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/audio_reference"), help="folder of the training")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the checkpoint")
    parser.add_argument("--sigma", type=float, default=usual.sigma)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    weights, config = load_file(options.work / "trained.safetensors"), model_config(tokenizer)
    spread = ScaleDistribution(sigma=options.sigma)
    heads = HeadCounts(config["num_attention_heads"], config["num_key_value_heads"])
    changed = scale_channels(weights, spread, config["num_hidden_layers"], heads)
    scale_audio(changed, spread, config["audio_config"]["encoder_layers"])
    difference = float((logits_of(weights, tokenizer) - logits_of(changed, tokenizer)).abs().max())
    if difference > 1e-3:
        raise ValueError(f"channel scaling changed a logit by {difference:.2e}")
    write_checkpoint(changed, tokenizer, options.out)
    print(f"{spread}: largest logit difference {difference:.1e}; written to {options.out}")


if __name__ == "__main__":
    main()
