"""The texts beside ONNX graphs: what transformers.js takes otherwise for granted than transformers is said to it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.families.qwenvl_inputs import Resizing
from mcpmq.formats.model_view import Planned
from mcpmq.formats.onnx.config_files import write_texts
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.tiny_families import TINY_FAMILIES, TinyFamily

FAMILIES = [one for one in TINY_FAMILIES if one.name.startswith("qwen")]
SHORTEST = {"image_processor_type": "Qwen2VLImageProcessorFast", "do_normalize": None, "image_std": [0.5, 0.25, 0.125]}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tiny checkpoint of a family that transformers.js has a class for."""
    family: TinyFamily = request.param
    return family.build(tmp_path / "source")


def texts_of(source: Path) -> Path:
    """The texts that go beside its graphs, without the graphs."""
    out = source.with_name("artifact")
    out.mkdir()
    write_texts(Planned(make_plan(Checkpoint.open(source), Recipe.load("full"))), out, {})
    return out


def read(folder: Path, name: str) -> dict[str, Any]:
    """One of them."""
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def test_sizes_lie_where_every_version_lets_them_be_looked_for(source: Path) -> None:
    """Beside the others and in `text_config`, whichever the checkpoint has; what it says else stays, and it is read
    as the same model."""
    given, written = read(source, "config.json"), read(texts_of(source), "config.json")
    architecture = Checkpoint.open(source).family.architecture

    for sizes in (written, written["text_config"]):
        assert (sizes["num_hidden_layers"], sizes["num_key_value_heads"], sizes["hidden_size"]) == (3, 2, 128)
    assert written["text_config"]["model_type"] == f"{given['model_type']}_text"
    assert all(written[key] == value for key, value in given.items() if key != "text_config")
    assert architecture(written) == architecture(given)


def test_steps_are_said_that_transformers_takes_for_granted(source: Path) -> None:
    """Without these keys transformers.js would neither resize nor normalize, nor find a tokenizer; bounds and means
    are those that our own pixels are made with, and what a checkpoint says itself stays."""
    (source / "preprocessor_config.json").write_text(json.dumps(SHORTEST))
    out = texts_of(source)
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
def test_a_template_in_a_file_of_its_own_is_put_where_it_is_looked_for(name: str, content: str, source: Path) -> None:
    """transformers.js reads none but that of tokenizer_config.json; the rest of that file stays."""
    given = read(source, "tokenizer_config.json")
    (source / name).write_text(content)

    assert read(texts_of(source), "tokenizer_config.json") == {**given, "chat_template": "{{ messages }}"}
