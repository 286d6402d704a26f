"""What the published configurations become: a plan with true sizes, of exactly the tensors that the torch class has."""

import json
from importlib import import_module
from math import prod
from pathlib import Path

import pytest
import torch
from transformers import MiniCPMV4_7Config, MiniCPMV4_7ForConditionalGeneration

from mcpmq.checkpoint import Checkpoint
from mcpmq.families import family_named, family_of
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from tests.families.published import PUBLISHED, SIBLING_OF_4_7, WEIGHTS_OF_THE_SIBLING


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_of_the_published_model_has_its_true_sizes(name: str, tmp_path: Path) -> None:
    """From the configuration and from headers in front of nothing: 2 bytes a weight, then what a recipe asks."""
    family, config, weights = PUBLISHED[name]
    plan = make_plan(Checkpoint.open(header_only(tmp_path / name, config)), Recipe.load("phone-int4"))

    assert plan.checkpoint.family.name == family
    assert plan.checkpoint.nbytes == 2 * weights
    int4 = [step for step in plan.steps if str(step.scheme) == "int4-g32"]
    int8 = [step for step in plan.steps if str(step.scheme) == "int8-g32"]
    kept = [step for step in plan.steps if step.scheme is None]
    assert all(step.name.startswith("language.layers.") for step in int4)
    sizes = (18 / 32, 34 / 32, 2)  # of 32 weights: their codes and a scale of two bytes
    groups = zip((int4, int8, kept), sizes, strict=True)
    rounded = sum(prod(step.spec.shape) * size for steps, size in groups for step in steps)
    assert plan.nbytes == pytest.approx(rounded, rel=1e-3)  # rows that are no whole groups have one more scale


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_and_what_is_left_out_are_those_of_the_torch_class(name: str) -> None:
    """Names in the module and shapes, and numbers that a configuration may not say, against the module on the meta
    device."""
    family, config, _ = PUBLISHED[name]
    given = _without(config, "rope_theta", "rms_norm_eps")
    module, _, function = family_named(family).native.partition(":")
    native = getattr(import_module(module), function)(given)
    architecture, text = family_of(given).architecture(given), native.config.get_text_config()

    specs = family_of(given).tensors(architecture)
    assert {name: spec.shape for spec in specs for name in spec.parameters} == {
        name: tuple(parameter.shape) for name, parameter in native.named_parameters()
    }
    assert len({spec.name for spec in specs}) == len({spec.hub_name for spec in specs}) == len(specs)
    assert architecture.language.rope_theta == text.rope_parameters["rope_theta"]
    assert architecture.language.norm_epsilon == text.rms_norm_eps
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert architecture.language.turned_width == head_width * text.rope_parameters.get("partial_rotary_factor", 1)


def test_the_vocabulary_taken_for_4_7_gives_its_sibling_its_weights() -> None:
    """Of the 1B no count was published: the mixture of experts with the same tokens and the same tower has one, and to
    the weight it is that of this vocabulary, in an embedding and in a head of its own."""
    _, config, _ = PUBLISHED["MiniCPM-V-4.7-1B"]
    text = {**SIBLING_OF_4_7, "vocab_size": config["text_config"]["vocab_size"]}
    given = MiniCPMV4_7Config(text_config=text, vision_config=config["vision_config"], tie_word_embeddings=False)
    with torch.device("meta"):
        sibling = MiniCPMV4_7ForConditionalGeneration(given)

    assert sum(parameter.numel() for parameter in sibling.parameters()) == WEIGHTS_OF_THE_SIBLING


def _without(config: dict[str, object], *keys: str) -> dict[str, object]:
    inner = {name: _without(value, *keys) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in inner.items() if name not in keys}


def header_only(folder: Path, config: dict[str, object]) -> Path:
    """A checkpoint whose weights take no room: a true header, and a file with a hole behind it."""
    folder.mkdir()
    family, header, end = family_of(config), {}, 0
    for spec in family.tensors(family.architecture(config)):
        begin, end = end, end + 2 * prod(spec.shape)
        header[spec.hub_name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [begin, end]}
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(file.tell() + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
