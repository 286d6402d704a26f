"""Canvas position ids, compared with transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcpmq.families.minicpmv47 import MINICPM_V_4_7
from mcpmq.families.modeling_transformers import minicpmv4_7
from mcpmq.system.json_file import read_json
from tests.tiny_families import TINY_FAMILIES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny MiniCPM-V 4.7."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == MINICPM_V_4_7.name]
    return tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.mark.parametrize("size", [(112, 112), (300, 200), (90, 640), (700, 60), (400, 400)])
def test_canvas_position_ids_are_those_of_transformers(size: tuple[int, int], checkpoint: Path, tmp_path: Path) -> None:
    """The position ids of all tokens agree for one slice, a row, a column and a square of slices."""
    processor = MINICPM_V_4_7.open_processor(checkpoint)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    inputs = processor.encode("noise", tmp_path / "noise.png", "What does it say?", "red")
    arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(inputs).items()}
    del arguments["pixel_values"]

    expected, _ = minicpmv4_7(read_json(checkpoint / "config.json")).model.get_rope_index(**arguments)  # type: ignore[operator, union-attr]

    np.testing.assert_array_equal(
        MINICPM_V_4_7.open_vision_inputs(checkpoint).position_ids(inputs), expected[:, 0].numpy()
    )


def test_text_position_ids_are_consecutive(checkpoint: Path) -> None:
    """The three axes have the same values."""
    inputs = MINICPM_V_4_7.open_processor(checkpoint).encode("text", None, "How many?", "three")

    positions = MINICPM_V_4_7.open_vision_inputs(checkpoint).position_ids(inputs)

    np.testing.assert_array_equal(positions, np.tile(np.arange(len(inputs.tokens)), (3, 1)))
