"""Image limits of a recipe are those of all inputs, artifacts, forecasts and engines."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress, limit_images
from mcpmq.compression_tables import ImagesTable
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError, OutputError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.evaluate import Settings, encode_samples, inputs_of, measure, measure_original
from mcpmq.families.encoding import encode_sample
from mcpmq.families.family import Processor
from mcpmq.families.inputs import Inputs
from mcpmq.formats import FormatName
from mcpmq.formats.image_tokens import image_tokens
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.diff import _origin
from mcpmq.runners.llamacpp import llamacpp
from mcpmq.runners.llamacpp.artifact_files import artifact_files
from mcpmq.runners.llamacpp.language import LanguageModel
from mcpmq.runners.llamacpp.vision import VisionEncoder
from tests.checkpoint_tools import edit_json
from tests.commands import Command
from tests.tiny_families import TINY_FAMILIES

BY_NAME = {family.name: family for family in TINY_FAMILIES}
LIMITS = {
    "qwen2": ImagesTable(max_pixels=10 * 28 * 28),
    "qwen3": ImagesTable(max_pixels=12 * 32 * 32),
    "smolvlm": ImagesTable(longest_edge=60),
}
SLICES = ImagesTable(max_slice_nums=2)
SIZES = ((150, 90), (40, 40), (64, 200))


def limits_for(checkpoint: Checkpoint) -> ImagesTable:
    """Return limits that apply to a family."""
    return next((limits for name, limits in LIMITS.items() if checkpoint.family.name.startswith(name)), SLICES)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several sizes."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    files = [folder / f"{width}x{height}.png" for width, height in SIZES]
    for file, (width, height) in zip(files, SIZES, strict=True):
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(file)
    return files


def encoded_tokens(checkpoint: Checkpoint, files: list[Path]) -> list[int]:
    """Return the image tokens of a sample with each image."""
    processor = checkpoint.family.open_processor(checkpoint.path)
    samples = [processor.encode("a", file, "7 + 1 ?", "8 !") for file in files]
    return [int(np.diff(sample.image_bounds).sum()) for sample in samples]


def counted_tokens(checkpoint: Checkpoint) -> list[int]:
    """Return the tokens that settings predict without an image."""
    settings = checkpoint.family.open_vision_inputs(checkpoint.path)
    queries = checkpoint.architecture.required_vision.num_queries
    return [settings.image_tokens(width, height, queries) for width, height in SIZES]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("minicpm-v-2.6", "slice_mode"),
        ("internvl", "crop_to_patches"),
        ("lfm2-vl", "do_image_splitting"),
        ("smolvlm2", "do_image_splitting"),
    ],
)
def test_limits_of_images_that_are_not_cut_are_an_error(name: str, setting: str, tmp_path: Path) -> None:
    """A processor that does not cut images would ignore the limit."""
    path = BY_NAME[name].build(tmp_path / "tiny")
    edit_json(path / "preprocessor_config.json", **{setting: False})
    checkpoint = Checkpoint.open(path)

    with (
        pytest.raises(RecipeError, match="does not change images: the image processor of .* does not cut them"),
        limit_images(checkpoint, limits_for(checkpoint)),
    ):
        pass


def test_every_family_encodes_as_many_tokens_as_forecast(family_checkpoint: Checkpoint, images: list[Path]) -> None:
    """The tokens of an image are those of its encoding, and limits reduce them; a text model has no limits."""
    if family_checkpoint.architecture.vision is None:
        assert image_tokens(family_checkpoint) == ()
        with pytest.raises(RecipeError, match="has no vision encoder"), limit_images(family_checkpoint, SLICES):
            pass
        return
    before = encoded_tokens(family_checkpoint, images)
    assert counted_tokens(family_checkpoint) == before
    if family_checkpoint.family.name == "gemma-3":
        with pytest.raises(RecipeError, match="of one size"), limit_images(family_checkpoint, SLICES):
            pass
        return
    with limit_images(family_checkpoint, limits_for(family_checkpoint)) as view:
        after = encoded_tokens(view, images)
        assert counted_tokens(view) == after
        assert (sum(after) < sum(before)) == (
            family_checkpoint.family.name != "lfm2-vl"
        )  # it cuts no image of the test
        assert all(now <= then for now, then in zip(after, before, strict=True))
        assert [one.original_tokens for one in image_tokens(view)] == [
            one.tokens for one in image_tokens(family_checkpoint)
        ]
        assert view.sha256 == family_checkpoint.sha256


@pytest.mark.parametrize("name", ["qwen2-vl", "minicpm-v-4.6", "internvl"])
def test_transformers_reads_the_limits(name: str, tmp_path: Path, images: list[Path]) -> None:
    """The image processor of transformers cuts and resizes as many pixels with the written file."""
    from transformers import GotOcr2ImageProcessorPil, MiniCPMV4_6ImageProcessorPil, Qwen2VLImageProcessorPil

    classes: dict[str, Any] = {
        "qwen2-vl": Qwen2VLImageProcessorPil,
        "minicpm-v-4.6": MiniCPMV4_6ImageProcessorPil,
        "internvl": GotOcr2ImageProcessorPil,
    }
    checkpoint = Checkpoint.open(BY_NAME[name].build(tmp_path / "tiny"))
    with limit_images(checkpoint, limits_for(checkpoint)) as view:
        processor, ours = classes[name].from_pretrained(view.path), view.family.open_processor(view.path)
        for file in images:
            theirs = processor(Image.open(file).convert("RGB"), return_tensors="np")["pixel_values"]
            inputs = ours.encode("a", file, "7 + 1 ?", "8 !")
            assert np.size(theirs) == ours.model_inputs(inputs)["pixel_values"].size


FORMATS: list[tuple[str, FormatName, str]] = [
    ("minicpm-v-2.6", "gguf", "phone-int8"),
    ("qwen2-vl", "gguf", "phone-int8"),
    ("qwen2-vl", "onnx", "phone-int4"),
    ("minicpm-v-2.6", "compressed-tensors", "language-int8"),
]


@pytest.mark.parametrize(("family", "name", "recipe"), FORMATS)
def test_every_format_has_the_limits(
    family: str, name: FormatName, recipe: str, tmp_path: Path, images: list[Path]
) -> None:
    """Files have the forecast bytes; preprocessor files have the limits, and llama.cpp those of pixels."""
    checkpoint = Checkpoint.open(BY_NAME[family].build(tmp_path / "tiny"))
    limits = limits_for(checkpoint)
    loaded = Recipe.load(recipe).model_copy(update={"images": limits})
    with compress(checkpoint, loaded) as view:
        plan = make_plan(view, loaded)
        [estimate] = forecast(plan, [name], 1024).formats
        artifact = convert_in_one_pass(plan, name, tmp_path / name)
        tokens = counted_tokens(view)
    manifest = artifact.manifest
    written = {(one.path, one.nbytes) for one in manifest.files}
    assert {(one.path, one.nbytes) for one in estimate.files.files} == written
    assert manifest.images is not None
    assert f"limits of images: {limits}" in manifest.notes
    assert _origin(artifact)["image limits"] == str(limits)
    if name != "gguf":
        read = checkpoint.family.open_vision_inputs(artifact.path)
        assert [read.image_tokens(*size, 4) for size in SIZES] == tokens
    if name == "compressed-tensors":
        assert "| 1920 x 1080 | 12 | 36 | 0.01 |" in (artifact.path / "README.md").read_text()
    if name == "gguf":
        found = _llama_cpp_tokens(artifact.path, images[0])
        assert found == tokens[0] if family == "qwen2-vl" else "slices, not 2" in manifest.notes[-1]


def _llama_cpp_tokens(folder: Path, image: Path) -> int:
    """Return the tokens of an image that llama.cpp preprocesses itself."""
    files = artifact_files(folder)
    assert files.mmproj is not None
    language = LanguageModel(llamacpp(), files.language, vocab_only=True)
    encoder = VisionEncoder(llamacpp(), files.mmproj, language, 1, f32_attention=True)
    chunks = encoder.encode_image(np.asarray(Image.open(image)))
    return sum(len(chunk) for chunk, grid in chunks if grid is not None)


def recorded_encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the ids of all samples are added that an evaluation encodes from now on."""
    ids: list[str] = []

    def encode(processor: Processor, sample: Sample) -> Inputs:
        ids.append(sample.id)
        return encode_sample(processor, sample)

    monkeypatch.setattr(import_module("mcpmq.evaluate.inputs"), "encode_sample", encode)
    return ids


def test_evaluation_uses_the_images_of_the_artifact(
    small_checkpoint: Path, tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact is measured on its own images and compared on the same answer tokens; texts do not change.

    Samples of which no answer is requested are not encoded again.
    """
    lines = [
        {"id": "image", "image": str(images[0]), "prompt": "7 + 1 ?", "answer": "8 !"},
        {"id": "text", "prompt": "7 + 1 ?", "answer": "8 !"},
    ]
    (tmp_path / "set").mkdir()
    images[0].rename(tmp_path / "set" / images[0].name)
    lines[0]["image"] = images[0].name
    (tmp_path / "set" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    checkpoint, samples = Checkpoint.open(small_checkpoint), SampleSet.open(tmp_path / "set")
    recipe = Recipe.load("full").model_copy(update={"images": SLICES})
    with compress(checkpoint, recipe) as view:
        artifact = quantize(make_plan(view, recipe), tmp_path / "quantized").artifact
    plan = make_plan(checkpoint, Recipe.load("full"))
    with pytest.raises(OutputError, match="not empty"):
        quantize(plan, tmp_path / "quantized")
    settings = Settings.from_options(threads=1, use_cache=False)
    with encode_samples(checkpoint, samples, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        measured = measure(artifact, inputs, settings, {"original": original.logprobs})
        with inputs_of(artifact.manifest, inputs, settings) as own:
            assert [len(one.slices) for one in own.store] == [3, 0]
            assert [len(one.slices) for one in inputs.store] == [7, 0]
        encoded = recorded_encodings(monkeypatch)
        with inputs_of(artifact.manifest, inputs, settings, ["text"]) as own:
            assert [one.id for one in own.store] == ["text"]
        assert encoded == []
        with inputs_of(artifact.manifest, inputs, settings, ["image"]) as own:
            assert [len(one.slices) for one in own.store] == [3]
        assert encoded == ["image"]
    image, text = measured.samples
    assert max(text.compared["original"].kl_divergences) < 1e-4 < max(image.compared["original"].kl_divergences)
    shuffled = Settings.from_options(threads=1, use_cache=False, shuffle_images=True)
    with pytest.raises(DatasetError, match="shuffled"), inputs_of(artifact.manifest, inputs, shuffled):
        pass


def test_limits_that_do_not_apply_are_errors(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A limit of another image processor, bounds without an area, and a plan without its view are errors."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with pytest.raises(RecipeError, match="`max_pixels` of .images. does not apply"):
        limit_images(checkpoint, ImagesTable(max_pixels=9)).__enter__()
    qwen = Checkpoint.open(BY_NAME["qwen2-vl"].build(tmp_path / "qwen"))
    with pytest.raises(RecipeError, match="at most 9 and at least 6,272 pixels"):
        limit_images(qwen, ImagesTable(max_pixels=9)).__enter__()
    with pytest.raises(RecipeError, match="has .images. with max_slice_nums 2, the checkpoint has those of its files"):
        make_plan(checkpoint, Recipe.load("full").model_copy(update={"images": SLICES}))


def test_plan_shows_tokens_by_option_and_recipe(mcpmq: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`--max-slices` and [images] give equal tokens of an image, with the bytes of their KV cache."""
    file = tmp_path / "few.toml"
    file.write_text('name = "few"\n[images]\nmax_slice_nums = 1\n[weights]\n"language.*" = "int4-g32"\n')
    by_option = mcpmq("plan", tiny_checkpoint, "--bits", 4, "-f", "gguf", "--max-slices", "1", "--json")
    by_recipe = mcpmq("plan", tiny_checkpoint, "--recipe", file, "-f", "gguf", "--json")
    found = [json.loads(one.stdout)["images"] for one in (by_option, by_recipe)]
    assert found[0] == found[1]
    assert [(one["tokens"], one["original_tokens"]) for one in found[0]] == [(4, 40), (4, 36), (4, 40)]
