"""MiniCPM-V 2.0 and 2.5 for an engine that places patches its own way, and queries not at all, against the formulas."""

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
from mcpmq.families.minicpmv2 import TEMPLATE
from mcpmq.families.modeling_minicpmv2 import Patches
from mcpmq.families.slicing import packed_pixels
from mcpmq.formats.gguf.names import names_of
from mcpmq.formats.gguf.position_tables import placed_queries, rows_along_one, table_for
from mcpmq.formats.gguf.resampler import GRID
from mcpmq.formats.gguf.resampler_2_0 import TIMM_RESAMPLER
from mcpmq.grids import dequantize
from mcpmq.plan import make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.gguf import open_runner
from tests.gguf_tools import exported, field, nearest_positions, quantized_by, reader_of, values
from tests.reference_model import native_module
from tests.tiny_families import TINY_FAMILIES

CELLS, SIDE = 27, 32  # as published
SHAPES = [(27, 38), (36, 28), (22, 47), (45, 23)]  # of slices of pages, photographs and telephones


def _patches(table: Tensor) -> Patches:
    patches = Patches(type("Config", (), {"hidden_size": table.shape[1], "patch_size": 14, "image_size": 14 * CELLS}))
    patches.pos_embed = nn.Parameter(table[None], requires_grad=False)
    return patches


def _waves(width: int = 48) -> Tensor:
    """A smooth table: every channel a sum of waves, at most two of them to a side."""
    random = torch.Generator().manual_seed(1)
    row, column = torch.meshgrid(torch.linspace(0, 1, CELLS), torch.linspace(0, 1, CELLS), indexing="ij")
    wave = torch.rand(5, 4, width, generator=random)
    angle = 4 * torch.pi * (wave[0] * row[..., None, None] + wave[1] * column[..., None, None]) + 7 * wave[2]
    return ((wave[3] - 0.5) * angle.cos()).sum(-2).flatten(0, 1)


@pytest.mark.parametrize(("side", "random"), [(32, True), (32, False), (4, True), (20, True), (27, False)])
def test_patches_of_square_slices_lie_where_they_lay(side: int, random: bool) -> None:
    """In slices of fewer patches than the table has cells, and of more."""
    table = torch.randn(CELLS**2, 8, generator=torch.Generator().manual_seed(0)) if random else _waves()
    patches = _patches(table)

    expected = patches.positions((side, side))

    np.testing.assert_allclose(nearest_positions(patches, (side, side), side), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_of_other_slices_lie_nearly_there(shape: tuple[int, int]) -> None:
    """Off by a tenth of what a smooth table holds at most; a table of 70 by 70 made in the plain way is far worse."""
    patches = _patches(_waves())
    expected = patches.positions(shape)
    plain = patches.positions((GRID, GRID)).unflatten(0, (GRID, GRID))
    rows, columns = ([GRID * number // length for number in range(length)] for length in shape)

    error = float((nearest_positions(patches, shape, SIDE) - expected).norm() / expected.norm())
    plain_error = float((plain[rows][:, columns].flatten(0, 1) - expected).norm() / expected.norm())

    assert error < 0.1
    assert plain_error > 3 * error


def _misplaced(shape: tuple[int, int], side: int) -> Any:
    """By how many of 70 positions patches that are counted along one row are off: [rows, columns]."""
    (height, width), cells = shape, np.array(rows_along_one(GRID, side)).reshape(GRID, GRID)
    row, column = np.arange(height)[:, None], np.arange(width)
    return cells[GRID * row // height, GRID * column // width] - GRID * (row * width + column) // (height * width)


@pytest.mark.parametrize("side", [1, 4, 20, 27, 32, 70])
def test_patches_of_square_slices_count_as_they_did(side: int) -> None:
    """Along one row, looked up in two dimensions."""
    assert not _misplaced((side, side), side).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_of_other_slices_count_nearly_so(shape: tuple[int, int]) -> None:
    """One of 70 positions beside on average at most half of the time."""
    assert np.abs(_misplaced(shape, SIDE)).max() <= 2
    assert np.abs(_misplaced(shape, SIDE)).mean() <= 0.55


@pytest.mark.parametrize("scheme", ["int8-g32", "q8_0", "f16"])
def test_the_engine_sees_square_slices_of_2_5_as_torch_does(scheme: str, tmp_path: Path) -> None:
    """Whatever the scheme of its table: rows of it move, and no code changes."""
    family = next(one for one in TINY_FAMILIES if one.name == "minicpm-v-2.5")
    schemes = {"_all": "f32", "vision__position_embedding": scheme}
    quantized = quantized_by(family.build(tmp_path / "tiny"), tmp_path, **schemes)
    runner = open_runner(exported(quantized, tmp_path).path, 1, exact=True)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)

    expected = _features(native_module(quantized), pixels)

    assert np.linalg.norm(runner.see(pixels) - expected) < 2e-3 * np.linalg.norm(expected)


def _drawn(count: int, width: int, alike: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    query = 0.02 * (torch.randn(count, width, generator=random) + alike * torch.randn(width, generator=random))
    weight = torch.randn(width, generator=random).exp()
    bias = 0.1 * torch.randn(width, generator=random)
    return query, weight, bias, torch.randn(count, width, generator=random)


@pytest.mark.parametrize(("count", "width", "alike"), [(64, 2304, 0), (64, 2304, 3), (4, 512, 0), (255, 512, 1)])
def test_queries_hold_their_positions(count: int, width: int, alike: float) -> None:
    """Norm of the query plus place, from a norm alone, in the floats of the file."""
    query, weight, bias, places = _drawn(count, width, alike)
    expected = functional.layer_norm(query, (width,), weight, bias, 1e-6) + places

    found = [torch.from_numpy(one).float() for one in placed_queries(query, weight, bias, places)]

    taken = functional.layer_norm(found[0], (width,), found[1], found[2], 1e-6)
    assert float((taken - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_queries_that_cannot_hold_them_are_refused() -> None:
    """As many as there are channels have no room."""
    with pytest.raises(FormatError, match="128 queries of the resampler cannot hold their positions in 128 channels"):
        placed_queries(*_drawn(128, 128, 0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 2.0, with other scales than llama.cpp has of itself."""
    [tiny] = [one for one in TINY_FAMILIES if one.name == "minicpm-v-2.0"]
    path = tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "scale_emb": 10, "scale_depth": 1.2}))
    return path


@pytest.fixture(scope="module")
def full(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """With nothing quantized."""
    return quantize(make_plan(Checkpoint.open(checkpoint), Recipe.load("full")), tmp_path_factory.mktemp("full") / "q")


@pytest.fixture(scope="module")
def artifact(full: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same as GGUF."""
    return exported(full, tmp_path_factory.mktemp("gguf"))


def _features(native: nn.Module, pixels: Any) -> Any:
    packed, size = torch.from_numpy(packed_pixels(pixels, [0.5] * 3, [0.5] * 3, 14)), pixels.shape[:2]
    with torch.inference_mode():
        return native.get_image_features(packed[None], torch.tensor([size]) // 14)[0].numpy()  # type: ignore[operator]


def test_the_engine_sees_square_slices_as_torch_does(full: Quantized, artifact: Artifact) -> None:
    """Nothing changed in torch, and embeddings smaller by what the engine will multiply them by; without the positions
    of queries they would be others."""
    native, runner = native_module(full), open_runner(artifact.path, 1, exact=True)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    expected = _features(native, pixels)

    seen = 10 * runner.see(pixels)
    native.resampler.pos_embed.data.zero_()  # type: ignore[operator, union-attr]
    unplaced = _features(native, pixels)

    assert np.linalg.norm(seen - expected) < 2e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(unplaced - expected) > 0.05 * np.linalg.norm(expected)


def test_files_say_what_llama_cpp_must_know(artifact: Artifact) -> None:
    """The version whose tags it has, slices, scales, and the template that no file of the checkpoint has."""
    sight, language = (reader_of(artifact, component) for component in ("vision+projector", "language"))

    assert [field(sight, f"clip.{key}") for key in ("minicpmv_version", "minicpmv_query_num")] == [2, 4]
    assert field(sight, "clip.vision.image_size") == 56
    assert field(language, "general.architecture") == "minicpm"
    assert field(language, "minicpm.embedding_scale") == 10
    assert field(language, "minicpm.residual_scale") == pytest.approx(1.2 / 2**0.5)
    assert field(language, "minicpm.logit_scale") == 2
    assert field(language, "tokenizer.chat_template") == TEMPLATE


def test_no_code_of_what_sees_changes(checkpoint: Path, tmp_path: Path) -> None:
    """Fused matrices in three parts; what is computed anew is in floats."""
    quantized = quantized_by(checkpoint, tmp_path, _all="int8-g32")
    reader = reader_of(exported(quantized, tmp_path), "vision+projector")
    matrices = [one for one in quantized.specs.values() if one.component in ("vision", "projector")]
    for spec in (one for one in matrices if one.role == "matrix"):
        weight = quantized.load(spec.name)
        assert isinstance(weight, QTensor)
        read = np.concatenate([values(reader, part) for part in names_of(spec.name, TIMM_RESAMPLER.names)])
        wanted = dequantize(weight).numpy()
        np.testing.assert_array_equal(read[tuple(map(slice, wanted.shape))], wanted)


def test_the_table_has_every_cell(full: Quantized, artifact: Artifact) -> None:
    """4,900 of them, as they were computed."""
    reader = reader_of(artifact, "vision+projector")
    table = full.load("vision.position_embedding")
    assert isinstance(table, Tensor)

    np.testing.assert_allclose(values(reader, "v.position_embd.weight"), table_for(table, GRID, 4), rtol=1e-6)
