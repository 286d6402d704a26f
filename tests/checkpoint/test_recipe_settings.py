"""The settings of a recipe for audio, speech output and the embedding: plans, artifacts and errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, FormatError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.export import export
from mcpmq.formats.support import check_audio
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe, to_toml
from tests.audio_tools import write_wav
from tests.commands import Command
from tests.hf_tools import load_tensors
from tests.tiny_families import MINICPM_O_2_6, QWEN2_5_OMNI, TinyFamily

WEIGHTS = {"language.*": "int8-row"}


def _plan(tiny: TinyFamily, folder: Path, **settings: Any) -> Plan:
    recipe = Recipe.model_validate({"name": "test", "weights": WEIGHTS, **settings})
    return make_plan(Checkpoint.open(tiny.build(folder / "tiny")), recipe)


@pytest.mark.parametrize(
    ("tiny", "switch"), [(MINICPM_O_2_6, "init_tts"), (QWEN2_5_OMNI, "enable_audio_output")], ids=lambda one: str(one)
)
def test_recipe_settings_is_kept_or_left_out(tiny: TinyFamily, switch: str, tmp_path: Path) -> None:
    """Both are forecast to the byte; without it, the key that enables it is off, and a note has the bytes."""
    stored = {}
    for choice in ("keep", "drop"):
        plan = _plan(tiny, tmp_path / choice, speech_output=choice)
        artifact = export(quantize(plan, tmp_path / choice / "codes"), "compressed-tensors", tmp_path / choice / "out")
        [predicted] = forecast(plan, ["compressed-tensors"], 512).formats
        assert {(one.path, one.nbytes) for one in predicted.files.files} == {
            (one.path, one.nbytes) for one in artifact.manifest.files
        }
        config = json.loads((artifact.path / "config.json").read_text())
        stored[choice] = load_tensors(artifact), config.get(switch), artifact.manifest.notes
    kept, dropped = stored["keep"], stored["drop"]

    assert kept[0].keys() - dropped[0].keys() == tiny.extra_tensors.keys()
    assert dropped[1] is False
    assert kept[1] is not False
    nbytes = sum(tensor.nbytes for tensor in tiny.extra_tensors.values())
    assert f"without speech output: 2 tensors of {nbytes} bytes are left out" in dropped[2]
    assert not kept[2]


def test_settings_for_other_models_are_rejected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A model without speech output, and one whose audio encoder has a projector of its own in llama.cpp."""
    recipe = Recipe.model_validate({"name": "test", "weights": WEIGHTS, "speech_output": "drop"})
    with pytest.raises(RecipeError, match="minicpm-v-2.6 has no speech output"):
        make_plan(Checkpoint.open(tiny_checkpoint), recipe)
    with pytest.raises(RecipeError, match="MiniCPM-o; the checkpoint is qwen2.5-omni"):
        _plan(QWEN2_5_OMNI, tmp_path, gguf_audio="glma")


def test_a_quantized_projector_is_rejected_for_stacked_frames(tmp_path: Path) -> None:
    """Before weights are read; the hint is the line of the recipe."""
    plan = _plan(MINICPM_O_2_6, tmp_path, gguf_audio="glma", weights={"*": "int8-g32"})
    with pytest.raises(FormatError, match="audio_projector.up") as caught:
        forecast(plan, ["gguf"], 512)
    assert '"audio_projector.*" = "keep"' in caught.value.hint


def test_gguf_without_audio_is_not_measured_on_audio(tmp_path: Path) -> None:
    """The error has the reason and the option, which permits it; other formats have audio."""
    write_wav(tmp_path / "noise.wav", 0.3)
    line = {"id": "a", "prompt": "How many?", "answer": "red", "audio": "noise.wav"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    family, samples = _plan(MINICPM_O_2_6, tmp_path / "o").checkpoint.family, SampleSet.open(tmp_path)

    with pytest.raises(DatasetError, match="1 samples of .* have audio, and `gguf` has no audio encoder") as caught:
        check_audio(family, "gguf", {}, samples)
    assert "--gguf-audio glma" in caught.value.hint
    check_audio(family, "gguf", {"gguf_audio": "glma"}, samples)
    check_audio(family, "onnx", {}, samples)


def test_a_recipe_file_keeps_the_settings(tmp_path: Path) -> None:
    """Written as TOML and loaded again."""
    recipe = Recipe.model_validate({"name": "o", "weights": WEIGHTS, "speech_output": "drop", "gguf_audio": "glma"})
    (tmp_path / "o.toml").write_text(to_toml(recipe.to_dict()))

    assert Recipe.load(str(tmp_path / "o.toml")) == recipe


def test_the_options_of_the_command_line_set_them(mcpmq: Command, tmp_path: Path) -> None:
    """`plan` and `quantize`; another projector is a usage error."""
    checkpoint = MINICPM_O_2_6.build(tmp_path / "tiny")
    options = "--recipe", "full", "--drop-speech-output", "--gguf-audio", "glma"
    planned = json.loads(mcpmq("plan", checkpoint, *options, "--format", "gguf", "--json").stdout)
    mcpmq("quantize", checkpoint, tmp_path / "gguf", *options, "--format", "gguf")
    wrong = mcpmq("plan", checkpoint, *options[:-1], "qwen2a")

    recipe = Artifact.open(tmp_path / "gguf").manifest.recipe
    assert (recipe["speech_output"], recipe["gguf_audio"]) == ("drop", "glma")
    assert "tts." not in json.dumps(planned)
    assert wrong.exit_code == 2
