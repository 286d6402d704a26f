"""The committed vision encoder, for the checkpoint with images."""

from pathlib import Path

from safetensors.torch import load_file
from torch.nn.functional import pad

from benchmarks.real_weights.checkpoint import Vision, vision_config
from benchmarks.real_weights.tower.encoder import DEPTH, HEADS, WIDTH

WEIGHTS = Path(__file__).parent / "tower.safetensors"


def trained_vision(hidden: int, file: Path = WEIGHTS) -> Vision:
    """Return the encoder as float32 for a language model with `hidden` channels; those that it lacks are zero."""
    tensors = {f"visual.{name}": value.float() for name, value in load_file(file).items()}
    for name in ("visual.merger.mlp.2.weight", "visual.merger.mlp.2.bias"):
        value = tensors[name]
        tensors[name] = pad(value, (0, 0) * (value.ndim - 1) + (0, hidden - len(value)))
    return Vision(vision_config(hidden, DEPTH, WIDTH, HEADS), tensors)
