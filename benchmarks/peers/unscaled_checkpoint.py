"""Write the reference checkpoint without its channel scales: the same function, with weights of similar magnitude.

Methods that sort or scale channels can undo the scales of the reference checkpoint, so tools are compared on both.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from calibration.reference.channel_scaling import HeadCounts, ScaleDistribution, scale_channels
from calibration.reference.checkpoint_files import model_config, read_weights, write_checkpoint


def write_unscaled(reference: Path, out: Path) -> None:
    """Divide every weight by its channel scale, which is the result of scaling a weight of ones."""
    tokenizer = Tokenizer.from_file(str(reference / "tokenizer.json"))
    config = model_config(tokenizer)
    heads = HeadCounts(config["num_attention_heads"], config["num_key_value_heads"])
    weights = {name: weight.float() for name, weight in read_weights(reference).items()}
    ones = {name: torch.ones_like(weight) for name, weight in weights.items()}
    factors = scale_channels(ones, ScaleDistribution(), config["num_hidden_layers"], heads)
    write_checkpoint({name: weight / factors[name] for name, weight in weights.items()}, tokenizer, out)
