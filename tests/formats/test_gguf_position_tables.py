"""Position tables of MiniCPM-V 2.0 and 2.5 for llama.cpp, compared with PyTorch and with the engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.families.minicpmv2 import CHAT_TEMPLATE
from mcpmq.families.modeling_minicpmv2 import PatchEmbedding
from mcpmq.families.slicing import pack_patches
from mcpmq.formats.gguf.names import gguf_names
from mcpmq.formats.gguf.position_tables import flat_position_rows, fold_query_positions, resample_position_table
from mcpmq.formats.gguf.resampler import POSITION_TABLE_SIDE
from mcpmq.formats.gguf.resampler_2_0 import TIMM_RESAMPLER
from mcpmq.grids import dequantize
from mcpmq.plan import make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.gguf import open_runner
from tests.gguf_tools import export_gguf, gguf_reader, llama_cpp_positions, metadata_value, quantize_with, tensor_values
from tests.reference_model import reference_model
from tests.tiny_families import TINY_FAMILIES

GRID, SLICE_SIDE = 27, 32  # of the published checkpoint
SHAPES = [(27, 38), (36, 28), (22, 47), (45, 23)]  # slices of pages, photographs and screenshots


def _patches(table: Tensor) -> PatchEmbedding:
    patches = PatchEmbedding(
        type("Config", (), {"hidden_size": table.shape[1], "patch_size": 14, "image_size": 14 * GRID})
    )
    patches.pos_embed = nn.Parameter(table[None], requires_grad=False)
    return patches


def _waves(width: int = 48) -> Tensor:
    """Return a smooth table: every channel is a sum of waves with at most two periods a side."""
    random = torch.Generator().manual_seed(1)
    row, column = torch.meshgrid(torch.linspace(0, 1, GRID), torch.linspace(0, 1, GRID), indexing="ij")
    wave = torch.rand(5, 4, width, generator=random)
    angle = 4 * torch.pi * (wave[0] * row[..., None, None] + wave[1] * column[..., None, None]) + 7 * wave[2]
    return ((wave[3] - 0.5) * angle.cos()).sum(-2).flatten(0, 1)


@pytest.mark.parametrize(("side", "random"), [(32, True), (32, False), (4, True), (20, True), (27, False)])
def test_positions_of_square_slices_are_exact(side: int, random: bool) -> None:
    """Slices may have fewer or more patches than the grid of the checkpoint."""
    table = torch.randn(GRID**2, 8, generator=torch.Generator().manual_seed(0)) if random else _waves()
    patches = _patches(table)

    expected = patches.position_embeddings((side, side))

    np.testing.assert_allclose(llama_cpp_positions(patches, (side, side), side), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_of_other_slices_are_close(shape: tuple[int, int]) -> None:
    """The error of a smooth table is below 10 %; interpolation to 70 x 70 has over three times that error."""
    patches, side = _patches(_waves()), POSITION_TABLE_SIDE
    expected = patches.position_embeddings(shape)
    plain = patches.position_embeddings((side, side)).unflatten(0, (side, side))
    rows, columns = ([side * index // length for index in range(length)] for length in shape)

    error = float((llama_cpp_positions(patches, shape, SLICE_SIDE) - expected).norm() / expected.norm())
    plain_error = float((plain[rows][:, columns].flatten(0, 1) - expected).norm() / expected.norm())

    assert error < 0.1
    assert plain_error > 3 * error


def _position_errors(shape: tuple[int, int], slice_side: int) -> Any:
    """Return the 2D lookup's positions minus the correct flat positions: [rows, columns]."""
    side, (height, width) = POSITION_TABLE_SIDE, shape
    cells = np.array(flat_position_rows(side, slice_side)).reshape(side, side)
    row, column = np.arange(height)[:, None], np.arange(width)
    return cells[side * row // height, side * column // width] - side * (row * width + column) // (height * width)


@pytest.mark.parametrize("side", [1, 4, 20, 27, 32, 70])
def test_flat_positions_of_square_slices_are_exact(side: int) -> None:
    """A 2D lookup returns the position of the patch in the sequence."""
    assert not _position_errors((side, side), side).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_flat_positions_of_other_slices_are_close(shape: tuple[int, int]) -> None:
    """The largest error is 2 of 70 positions, the mean error about a half."""
    assert np.abs(_position_errors(shape, SLICE_SIDE)).max() <= 2
    assert np.abs(_position_errors(shape, SLICE_SIDE)).mean() <= 0.55


@pytest.mark.parametrize("scheme", ["int8-g32", "q8_0", "f16"])
def test_the_engine_encodes_square_slices_of_2_5_like_torch(scheme: str, tmp_path: Path) -> None:
    """The rows of the position table are reordered for every scheme; codes do not change."""
    family = next(tiny for tiny in TINY_FAMILIES if tiny.name == "minicpm-v-2.5")
    schemes = {"_all": "f32", "vision__position_embedding": scheme}
    quantized = quantize_with(family.build(tmp_path / "tiny"), tmp_path, **schemes)
    runner = open_runner(export_gguf(quantized, tmp_path).path, 1, f32_attention=True)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)

    expected = _features(reference_model(quantized), pixels)

    assert np.linalg.norm(runner.encode_slice(pixels) - expected) < 2e-3 * np.linalg.norm(expected)


def _random_queries(count: int, width: int, common: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries, norm weight, norm bias and positions; `common` scales a part that all queries share."""
    random = torch.Generator().manual_seed(count)
    query = 0.02 * (torch.randn(count, width, generator=random) + common * torch.randn(width, generator=random))
    weight = torch.randn(width, generator=random).exp()
    bias = 0.1 * torch.randn(width, generator=random)
    return query, weight, bias, torch.randn(count, width, generator=random)


@pytest.mark.parametrize(("count", "width", "common"), [(64, 2304, 0), (64, 2304, 3), (4, 512, 0), (255, 512, 1)])
def test_query_positions_fold_into_the_norm(count: int, width: int, common: float) -> None:
    """The norm of the folded queries equals the original norm plus positions, in float32."""
    query, weight, bias, positions = _random_queries(count, width, common)
    expected = functional.layer_norm(query, (width,), weight, bias, 1e-6) + positions

    folded = [torch.from_numpy(values).float() for values in fold_query_positions(query, weight, bias, positions)]

    normed = functional.layer_norm(folded[0], (width,), folded[1], folded[2], 1e-6)
    assert float((normed - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_too_many_queries_for_folding_are_rejected() -> None:
    """Folding needs more channels than queries."""
    with pytest.raises(FormatError, match="cannot fold 128 query positions into 128 channels"):
        fold_query_positions(*_random_queries(128, 128, 0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 2.0 with scales that are not the defaults of llama.cpp."""
    [tiny] = [tiny for tiny in TINY_FAMILIES if tiny.name == "minicpm-v-2.0"]
    path = tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "scale_emb": 10, "scale_depth": 1.2}))
    return path


@pytest.fixture(scope="module")
def full(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The checkpoint under the recipe `full`, which quantizes no weight."""
    return quantize(make_plan(Checkpoint.open(checkpoint), Recipe.load("full")), tmp_path_factory.mktemp("full") / "q")


@pytest.fixture(scope="module")
def artifact(full: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same model, exported to GGUF."""
    return export_gguf(full, tmp_path_factory.mktemp("gguf"))


def _features(model: nn.Module, pixels: Any) -> Any:
    packed, size = torch.from_numpy(pack_patches(pixels, [0.5] * 3, [0.5] * 3, 14)), pixels.shape[:2]
    with torch.inference_mode():
        return model.get_image_features(packed[None], torch.tensor([size]) // 14)[0].numpy()  # type: ignore[operator]


def test_the_engine_encodes_square_slices_of_2_0_like_torch(full: QuantizedModel, artifact: Artifact) -> None:
    """Image embeddings are divided by the embedding scale; without query positions they would differ."""
    model, runner = reference_model(full), open_runner(artifact.path, 1, f32_attention=True)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    expected = _features(model, pixels)

    encoded = 10 * runner.encode_slice(pixels)
    model.resampler.pos_embed.data.zero_()  # type: ignore[operator, union-attr]
    without_positions = _features(model, pixels)

    assert np.linalg.norm(encoded - expected) < 2e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(without_positions - expected) > 0.05 * np.linalg.norm(expected)


def test_files_of_2_0_have_its_version_scales_and_template(artifact: Artifact) -> None:
    """The checkpoint has no chat template, so the family's default is written."""
    mmproj, language = (gguf_reader(artifact, component) for component in ("vision+projector", "language"))

    assert [metadata_value(mmproj, f"clip.{key}") for key in ("minicpmv_version", "minicpmv_query_num")] == [2, 4]
    assert metadata_value(mmproj, "clip.vision.image_size") == 56
    assert metadata_value(language, "general.architecture") == "minicpm"
    assert metadata_value(language, "minicpm.embedding_scale") == 10
    assert metadata_value(language, "minicpm.residual_scale") == pytest.approx(1.2 / 2**0.5)
    assert metadata_value(language, "minicpm.logit_scale") == 2
    assert metadata_value(language, "tokenizer.chat_template") == CHAT_TEMPLATE


def test_quantized_weights_of_the_vision_encoder_do_not_change(checkpoint: Path, tmp_path: Path) -> None:
    """Fused matrices are split into three parts; only floating-point tensors are converted."""
    quantized = quantize_with(checkpoint, tmp_path, _all="int8-g32")
    reader = gguf_reader(export_gguf(quantized, tmp_path), "vision+projector")
    specs = [spec for spec in quantized.specs.values() if spec.component in ("vision", "projector")]
    for spec in (spec for spec in specs if spec.role == "matrix"):
        weight = quantized.load(spec.name)
        assert isinstance(weight, QTensor)
        read = np.concatenate([tensor_values(reader, part) for part in gguf_names(spec.name, TIMM_RESAMPLER.names)])
        expected = dequantize(weight).numpy()
        np.testing.assert_array_equal(read[tuple(map(slice, expected.shape))], expected)


def test_the_file_has_the_resampled_table(full: QuantizedModel, artifact: Artifact) -> None:
    """All 4,900 positions are stored."""
    reader = gguf_reader(artifact, "vision+projector")
    table = full.load("vision.position_embedding")
    assert isinstance(table, Tensor)

    np.testing.assert_allclose(
        tensor_values(reader, "v.position_embd.weight"),
        resample_position_table(table, POSITION_TABLE_SIDE, 4),
        rtol=1e-6,
    )
