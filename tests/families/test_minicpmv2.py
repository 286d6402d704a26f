"""Tensors of the published MiniCPM-V 2.0, and its prompt, which is not defined by a file of the checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.export import export
from mcpmq.families import family_of
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.transformers import load_artifact
from tests.families.published import PUBLISHED
from tests.tiny_families import MINICPM_V_2_CONFIG as CONFIG
from tests.tiny_families import TINY_FAMILIES

LAYERS = {"vpm.blocks": 26, "llm.model.layers": 40}
# Names in the published index, by prefix; the layer number follows the prefix in LAYERS.
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
[TINY] = [tiny for tiny in TINY_FAMILIES if tiny.name == "minicpm-v-2.0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny MiniCPM-V 2.0."""
    return TINY.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def texts(checkpoint: Path, tmp_path: Path) -> Path:
    """Copy of its text files, to be changed."""
    for file in checkpoint.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    """Image with two rows of one slice."""
    pixels = np.random.default_rng(0).integers(0, 256, (110, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def _processor(folder: Path) -> MiniCpmVProcessor:
    processor = family_of(CONFIG).open_processor(folder)
    assert isinstance(processor, MiniCpmVProcessor)
    return processor


def test_the_published_model_has_the_published_tensors() -> None:
    """There are 694 tensors; the vision encoder has 26 layers, since the dropped 27th is not stored."""
    _, config, _ = PUBLISHED["MiniCPM-V-2"]
    family = family_of(config)
    specs = family.tensor_specs(family.parse_architecture(config))

    expected = {
        f"{holder}.{layer}{name}"
        for holder, names in PUBLISHED_NAMES.items()
        for layer in ([f"{number}." for number in range(LAYERS[holder])] if holder in LAYERS else [""])
        for name in names.split()
    }
    assert {spec.hub_name for spec in specs} == expected
    assert len(specs) == len(expected) == 694
    assert sum(spec.role == "matrix" and spec.component == "language" for spec in specs) == 280
    assert family.parse_architecture(config).required_vision.position_grid_size == 27


@pytest.mark.parametrize("changes", [{"version": "2.0"}, {"version": 2}, {"version": 2.0}, {}])
def test_the_version_can_be_missing(changes: dict[str, object]) -> None:
    """Hidden size and number of queries identify version 2.0."""
    _, config, _ = PUBLISHED["MiniCPM-V-2"]

    assert family_of(config | changes).name == "minicpm-v-2.0"


@pytest.mark.parametrize(
    ("key", "value"),
    [("tie_word_embeddings", True), ("attention_bias", True), ("vision_encoder", "vit_huge_patch14_224")],
)
def test_an_unsupported_feature_is_rejected(key: str, value: object) -> None:
    """A tied head, attention biases and another vision encoder raise CheckpointError."""
    config = CONFIG | {key: value}

    with pytest.raises(CheckpointError, match=key):
        family_of(config).parse_architecture(config)


def test_the_last_vision_layer_is_kept_if_it_is_not_dropped() -> None:
    """Without `drop_vision_last_layer` all configured layers are stored."""
    config = CONFIG | {"drop_vision_last_layer": False}

    assert family_of(config).parse_architecture(config).required_vision.num_layers == 3


def test_an_image_prompt_is_as_published(checkpoint: Path, image_file: Path) -> None:
    """The prompt has `<s>`, role tags, `<image>` tags around each slice, one line per row and no image id."""
    processor = _processor(checkpoint)
    [unknown, image, closed, begin, end] = (
        processor.special_tokens[token] for token in ("<unk>", "<image>", "</image>", "<slice>", "</slice>")
    )
    encode = processor.tokenizer.encode

    sample = processor.encode("", image_file, "How many?", "red")

    slice_tokens = [image, *[unknown] * 4, closed]
    line, rest = (encode(text, add_special_tokens=False).ids for text in ("\n", "\nHow many?<AI>"))
    opening = [1, *encode("<用户>", add_special_tokens=False).ids]
    expected = [*opening, *slice_tokens, begin, *slice_tokens, *line, *slice_tokens, end, *rest]
    assert sample.tokens[: sample.answer_start].tolist() == expected
    assert sample.tokens[-1] == 2
    assert [part.shape for part in sample.slices] == [(84, 42, 3), (56, 56, 3), (56, 56, 3)]
    assert sample.image_bounds.tolist() == [[place, place + 4] for place in np.flatnonzero(sample.tokens == image) + 1]


def test_a_text_prompt_has_no_image_tags(checkpoint: Path) -> None:
    """The prompt consists of role tags and the question."""
    processor = _processor(checkpoint)

    sample = processor.encode("", None, "How many?", "red")

    question = processor.tokenizer.encode("<用户>How many?<AI>", add_special_tokens=False).ids
    assert sample.tokens[: sample.answer_start].tolist() == [1, *question]


def test_slicing_settings_are_read_from_config_json(texts: Path, image_file: Path) -> None:
    """An equal preprocessor_config.json changes nothing, a different one raises CheckpointError."""
    before = _processor(texts).encode("", image_file, "How many?", "red")
    same = {"scale_resolution": 56, "max_slice_nums": 9, "patch_size": 14, "image_feature_size": 4}
    (texts / "preprocessor_config.json").write_text(json.dumps(same))

    after = _processor(texts).encode("", image_file, "How many?", "red")

    assert all(np.array_equal(first, second) for first, second in zip(before.slices, after.slices, strict=True))
    (texts / "preprocessor_config.json").write_text(json.dumps(same | {"scale_resolution": 70}))
    with pytest.raises(CheckpointError, match="scale_resolution"):
        _processor(texts)


def test_a_template_of_the_checkpoint_overrides_the_default(texts: Path) -> None:
    """`chat_template.jinja` is used if it exists."""
    (texts / "chat_template.jinja").write_text("<s>{{ messages[0]['content'] }}<AI>")

    sample = _processor(texts).encode("", None, "How many?", "red")

    question = _processor(texts).tokenizer.encode("How many?<AI>", add_special_tokens=False).ids
    assert sample.tokens[: sample.answer_start].tolist() == [1, *question]


def test_transformers_loads_the_position_embeddings(checkpoint: Path, tmp_path: Path) -> None:
    """Their name in an artifact differs from that of the torch parameter."""
    recipe = Recipe.model_validate({"name": "hf", "weights": {"language.*.mlp.up": "int4-g32"}})
    plan = make_plan(Checkpoint.open(checkpoint), recipe)
    written = export(quantize(plan, tmp_path / "codes"), "compressed-tensors", tmp_path / "hf")

    opened = HuggingFaceArtifact.open(written.path)
    loaded = load_artifact(opened).model.get_parameter("vpm.patch_embed.pos_embed")

    stored = opened.load("vision.position_embedding")
    assert isinstance(stored, Tensor)
    assert torch.equal(loaded, stored)
