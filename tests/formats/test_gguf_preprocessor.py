"""Settings of the image processor in mmproj files."""

from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.formats.gguf.mmproj import open_preprocessor
from mcpmq.formats.gguf.sizes import forecast_files
from mcpmq.formats.model_view import PlannedModel
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.checkpoint_tools import build_family, edit_json


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """Tiny Qwen2-VL."""
    return build_family("qwen2-vl", tmp_path / "qwen2-vl")


def planned(path: Path) -> PlannedModel:
    """Return a model before quantization."""
    return PlannedModel(make_plan(Checkpoint.open(path), Recipe.load("full")))


def test_means_and_deviations_include_the_other_steps(qwen: Path) -> None:
    """llama.cpp divides by 255 and normalizes: another factor and a step that is off become other statistics."""
    edit_json(qwen / "preprocessor_config.json", rescale_factor=2 / 255, image_mean=[0.5, 1.0, 1.5], image_std=0.5)
    assert open_preprocessor(planned(qwen)).normalization == ((0.25, 0.5, 0.75), (0.25, 0.25, 0.25))
    edit_json(qwen / "preprocessor_config.json", do_normalize=False)
    assert open_preprocessor(planned(qwen)).normalization == ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))
    edit_json(qwen / "preprocessor_config.json", do_rescale=False, do_normalize=True)
    means, stds = open_preprocessor(planned(qwen)).normalization
    assert (means[0], stds[0]) == pytest.approx((0.5 / 255, 0.5 / 255))


def test_the_filter_of_tiles_is_that_of_llama_cpp(tmp_path: Path) -> None:
    """Tiles are resized with Lanczos' filter; images that are not cut into tiles are rejected."""
    smolvlm = build_family("smolvlm2", tmp_path / "smolvlm2")
    assert open_preprocessor(planned(smolvlm)).resample == 1
    edit_json(smolvlm / "preprocessor_config.json", do_image_splitting=False)
    with pytest.raises(FormatError, match="always cuts images into tiles"):
        forecast_files(planned(smolvlm))
    edit_json(smolvlm / "preprocessor_config.json", resample=3)
    with pytest.raises(FormatError, match=r"filter 3 .* llama\.cpp uses 1"):
        open_preprocessor(planned(smolvlm))


def test_another_filter_is_rejected(qwen: Path) -> None:
    """llama.cpp resizes images bicubically."""
    edit_json(qwen / "preprocessor_config.json", resample=2)

    with pytest.raises(FormatError, match="filter 2") as caught:
        open_preprocessor(planned(qwen))
    assert "onnx" in caught.value.hint
