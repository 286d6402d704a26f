"""Encoded samples for the tests of all engines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor


@pytest.fixture(scope="session")
def tiny_samples(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Inputs]:
    """Samples of the tiny checkpoint with no slice, one slice and many slices."""
    processor = MiniCpmVProcessor.open(tiny_checkpoint)
    folder = tmp_path_factory.mktemp("images")
    samples = [processor.encode("text", None, "How many?", "three circles are there")]
    for width, height in ((56, 56), (150, 90), (60, 200)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}.png")
        samples.append(processor.encode(f"image-{width}", folder / f"{width}.png", "What does it say?", "red sign"))
    return samples
