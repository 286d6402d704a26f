"""What the family says about the published MiniCPM-V 2.0, and how it asks: by code, for no file has a template."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.export import export
from mcpmq.families import family_of
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.transformers import load
from tests.families.published import PUBLISHED
from tests.tiny_families import MINICPM_V_2_CONFIG as CONFIG
from tests.tiny_families import TINY_FAMILIES

LAYERS = {"vpm.blocks": 26, "llm.model.layers": 40}
# The names in the published index, without those of single layers, and without what a layer's names begin with.
PUBLISHED_NAMES = {
    "llm": "lm_head.weight model.embed_tokens.weight model.norm.weight",
    "resampler": "attn.in_proj_bias attn.in_proj_weight attn.out_proj.bias attn.out_proj.weight kv_proj.weight"
    " ln_kv.bias ln_kv.weight ln_post.bias ln_post.weight ln_q.bias ln_q.weight pos_embed proj query",
    "vpm": "norm.bias norm.weight patch_embed.proj.bias patch_embed.proj.weight pos_embed",
    "vpm.blocks": "attn.proj.bias attn.proj.weight attn.qkv.bias attn.qkv.weight mlp.fc1.bias mlp.fc1.weight"
    " mlp.fc2.bias mlp.fc2.weight norm1.bias norm1.weight norm2.bias norm2.weight",
    "llm.model.layers": "input_layernorm.weight mlp.down_proj.weight mlp.gate_proj.weight mlp.up_proj.weight"
    " post_attention_layernorm.weight self_attn.k_proj.weight self_attn.o_proj.weight self_attn.q_proj.weight"
    " self_attn.v_proj.weight",
}
[TINY] = [one for one in TINY_FAMILIES if one.name == "minicpm-v-2.0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny one."""
    return TINY.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def texts(checkpoint: Path, tmp_path: Path) -> Path:
    """Its text files, to be changed."""
    for file in checkpoint.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture that is cut into two rows of one slice."""
    pixels = np.random.default_rng(0).integers(0, 256, (110, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def _processor(folder: Path) -> MiniCpmVProcessor:
    processor = family_of(CONFIG).processor(folder)
    assert isinstance(processor, MiniCpmVProcessor)
    return processor


def test_the_published_model_has_the_tensors_that_were_published() -> None:
    """694 of them, and 26 layers of the tower: the 27th is dropped, and stored nowhere."""
    _, config, _ = PUBLISHED["MiniCPM-V-2"]
    family = family_of(config)
    specs = family.tensors(family.architecture(config))

    expected = {
        f"{holder}.{layer}{name}"
        for holder, names in PUBLISHED_NAMES.items()
        for layer in ([f"{number}." for number in range(LAYERS[holder])] if holder in LAYERS else [""])
        for name in names.split()
    }
    assert {spec.hub_name for spec in specs} == expected
    assert len(specs) == len(expected) == 694
    assert sum(spec.role == "matrix" and spec.component == "language" for spec in specs) == 280
    assert family.architecture(config).sees.grid == 27


@pytest.mark.parametrize("changes", [{"version": "2.0"}, {"version": 2}, {"version": 2.0}, {}])
def test_the_published_version_may_be_absent_too(changes: dict[str, object]) -> None:
    """Then it is known by its width and its queries."""
    _, config, _ = PUBLISHED["MiniCPM-V-2"]

    assert family_of(config | changes).name == "minicpm-v-2.0"


@pytest.mark.parametrize(
    ("key", "value"),
    [("tie_word_embeddings", True), ("attention_bias", True), ("vision_encoder", "vit_huge_patch14_224")],
)
def test_another_model_is_refused(key: str, value: object) -> None:
    """Head, attention, and a tower of unknown sizes."""
    config = CONFIG | {key: value}

    with pytest.raises(CheckpointError, match=key):
        family_of(config).architecture(config)


def test_a_tower_that_drops_nothing_keeps_its_last_layer() -> None:
    """As many layers as the configuration says."""
    config = CONFIG | {"drop_vision_last_layer": False}

    assert family_of(config).architecture(config).sees.layers == 3


def test_a_question_about_an_image_is_as_published(checkpoint: Path, picture: Path) -> None:
    """`<s>`, roles in brackets, every slice in the tags of an image, rows on lines of their own, no number."""
    processor = _processor(checkpoint)
    [unknown, image, closed, begin, end] = (
        processor.special[token] for token in ("<unk>", "<image>", "</image>", "<slice>", "</slice>")
    )
    encode = processor.tokenizer.encode

    sample = processor.encode("", picture, "How many?", "red")

    one = [image, *[unknown] * 4, closed]
    line, rest = (encode(text, add_special_tokens=False).ids for text in ("\n", "\nHow many?<AI>"))
    opening = [1, *encode("<用户>", add_special_tokens=False).ids]
    expected = [*opening, *one, begin, *one, *line, *one, end, *rest]
    assert sample.tokens[: sample.answer_start].tolist() == expected
    assert sample.tokens[-1] == 2
    assert [part.shape for part in sample.slices] == [(84, 42, 3), (56, 56, 3), (56, 56, 3)]
    assert sample.image_bounds.tolist() == [[place, place + 4] for place in np.flatnonzero(sample.tokens == image) + 1]


def test_a_question_without_an_image_stands_alone(checkpoint: Path) -> None:
    """No tags at all."""
    processor = _processor(checkpoint)

    sample = processor.encode("", None, "How many?", "red")

    question = processor.tokenizer.encode("<用户>How many?<AI>", add_special_tokens=False).ids
    assert sample.tokens[: sample.answer_start].tolist() == [1, *question]


def test_slicing_is_in_the_configuration_and_may_have_a_file(texts: Path, picture: Path) -> None:
    """A later file that says the same changes nothing, one that says something else is refused."""
    before = _processor(texts).encode("", picture, "How many?", "red")
    same = {"scale_resolution": 56, "max_slice_nums": 9, "patch_size": 14, "image_feature_size": 4}
    (texts / "preprocessor_config.json").write_text(json.dumps(same))

    after = _processor(texts).encode("", picture, "How many?", "red")

    assert all(np.array_equal(one, other) for one, other in zip(before.slices, after.slices, strict=True))
    (texts / "preprocessor_config.json").write_text(json.dumps(same | {"scale_resolution": 70}))
    with pytest.raises(CheckpointError, match="scale_resolution"):
        _processor(texts)


def test_a_template_of_the_checkpoint_goes_before(texts: Path) -> None:
    """Somebody may have added one."""
    (texts / "chat_template.jinja").write_text("<s>{{ messages[0]['content'] }}<AI>")

    sample = _processor(texts).encode("", None, "How many?", "red")

    question = _processor(texts).tokenizer.encode("How many?<AI>", add_special_tokens=False).ids
    assert sample.tokens[: sample.answer_start].tolist() == [1, *question]


def test_transformers_finds_the_table_of_positions(checkpoint: Path, tmp_path: Path) -> None:
    """It lies beside the layers in every artifact, and in a module of its own once it is loaded."""
    recipe = Recipe.model_validate({"name": "hf", "weights": {"language.*.mlp.up": "int4-g32"}})
    plan = make_plan(Checkpoint.open(checkpoint), recipe)
    written = export(quantize(plan, tmp_path / "codes"), "compressed-tensors", tmp_path / "hf")

    opened = HuggingFaceArtifact.open(written.path)
    loaded = load(opened).model.get_parameter("vpm.patch_embed.pos_embed")

    assert torch.equal(loaded, opened.load("vision.position_embedding"))
