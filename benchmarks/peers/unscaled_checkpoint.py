"""The reference checkpoint without the channel spread that it was given: the same function, weights easy to round.

Rounding that sorts or scales channels can undo that spread, so a comparison on it alone would say more about the spread
than about the tools.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from calibration.reference.channel_scaling import Heads, Spread, folded
from calibration.reference.checkpoint_files import model_config, read_weights, write_checkpoint


def write(reference: Path, out: Path) -> None:
    """What the fold multiplied is divided by what it makes of ones."""
    tokenizer = Tokenizer.from_file(str(reference / "tokenizer.json"))
    config = model_config(tokenizer)
    heads = Heads(config["num_attention_heads"], config["num_key_value_heads"])
    weights = {name: weight.float() for name, weight in read_weights(reference).items()}
    ones = {name: torch.ones_like(weight) for name, weight in weights.items()}
    factors = folded(ones, Spread(), config["num_hidden_layers"], heads)
    write_checkpoint({name: weight / factors[name] for name, weight in weights.items()}, tokenizer, out)
