"""Configuration files beside ONNX graphs: the keys that transformers.js requires and transformers does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.formats.model_view import PlannedModel
from mcpmq.formats.onnx.config_files import write_config_files
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.tiny_families import TINY_FAMILIES, TinyFamily

FAMILIES = [one for one in TINY_FAMILIES if one.name.startswith("qwen") and one.name != "qwen2.5-omni"]
MINIMAL_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "do_convert_rgb": None,
    "image_std": [0.5, 0.25, 0.125],
}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tiny checkpoint of a family that transformers.js supports."""
    family: TinyFamily = request.param
    return family.build(tmp_path / "source")


def write_files(source: Path) -> Path:
    """Write the configuration files of an artifact, without its graphs."""
    out = source.with_name("artifact")
    out.mkdir()
    write_config_files(PlannedModel(make_plan(Checkpoint.open(source), Recipe.load("full"))), out, {})
    return out


def read(folder: Path, name: str) -> dict[str, Any]:
    """Read one of the files."""
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def test_text_sizes_are_at_both_levels_of_the_config(source: Path) -> None:
    """config.json has the sizes of the language model at the top level and in `text_config`, keeps its other keys,
    and parses to the same architecture."""
    given, written = read(source, "config.json"), read(write_files(source), "config.json")
    architecture = Checkpoint.open(source).family.parse_architecture

    language = architecture(given).language

    for sizes in (written, written["text_config"]):
        assert (sizes["num_hidden_layers"], sizes["hidden_size"]) == (language.num_layers, 128)
        assert sizes["num_key_value_heads"] == language.num_kv_heads
    assert written["text_config"]["model_type"] == f"{given['model_type']}_text"
    assert all(written[key] == value for key, value in given.items() if key != "text_config")
    assert architecture(written) == architecture(given)


def test_defaults_of_transformers_are_written_out(source: Path) -> None:
    """preprocessor_config.json has the default steps, bounds and classes of transformers, and the values of the
    checkpoint take precedence."""
    (source / "preprocessor_config.json").write_text(json.dumps(MINIMAL_PREPROCESSOR))
    out = write_files(source)
    written, resizing = read(out, "preprocessor_config.json"), Resizing.open(source)

    assert {written[f"do_{step}"] for step in ("convert_rgb", "resize", "rescale", "normalize")} == {True}
    assert (written["resample"], written["rescale_factor"]) == (3, 1 / 255)
    assert (written["min_pixels"], written["max_pixels"]) == (56 * 56, 28 * 28 * 1280)
    assert (written["image_mean"], written["image_std"]) == (list(resizing.image_mean), [0.5, 0.25, 0.125])
    assert (written["patch_size"], written["merge_size"], written["temporal_patch_size"]) == (14, 2, 2)
    assert written["image_processor_type"] == "Qwen2VLImageProcessor"
    assert written["processor_class"].endswith("VLProcessor")
    given = Resizing.open(out)
    assert given.best_size(4000, 10) == resizing.best_size(4000, 10)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("chat_template.json", json.dumps({"chat_template": "{{ messages }}"})),
    ],
)
def test_a_separate_chat_template_is_added_to_the_tokenizer_config(name: str, content: str, source: Path) -> None:
    """tokenizer_config.json gets the chat template of a separate file and keeps its other keys."""
    given = read(source, "tokenizer_config.json")
    (source / name).write_text(content)

    assert read(write_files(source), "tokenizer_config.json") == {**given, "chat_template": "{{ messages }}"}
