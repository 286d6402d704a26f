"""Qwen2.5-Omni: sizes of the configuration, tensors, and the torch module, compared with transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.messages import Message
from mcpmq.families.modeling_transformers import qwen2_5_omni
from mcpmq.families.whisper import sinusoids
from tests.audio_tools import waveform
from tests.families.published import PUBLISHED
from tests.tiny_families import QWEN2_5_OMNI as TINY


def test_logits_are_those_of_the_class_in_transformers(tmp_path: Path) -> None:
    """A prompt with two audios, with the weights that transformers itself loads from the checkpoint."""
    checkpoint = Checkpoint.open(TINY.build(tmp_path / "tiny"))
    config = transformers.Qwen2_5OmniThinkerConfig(**checkpoint.config["thinker_config"])
    model: Any = transformers.Qwen2_5OmniThinkerForConditionalGeneration
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    published, found = model.from_pretrained(checkpoint.path, **options)
    assert not found["missing_keys"]
    inputs = checkpoint.family.open_processor(checkpoint.path)
    prompt = inputs.encode_chat([Message("user", (waveform(2.7), "and", waveform(0.8, seed=1), "Which?"))])
    arguments = {name: torch.from_numpy(value) for name, value in inputs.model_inputs(prompt).items()}
    module = qwen2_5_omni(checkpoint.config)
    weights = {name: checkpoint.load_float32(spec) for spec in checkpoint.specs for name in spec.parameter_names}
    module.load_state_dict({name: weights[name] for name, _ in module.named_parameters()}, assign=True)

    with torch.inference_mode():
        expected, logits = published(**arguments).logits, module(**arguments, logits_to_keep=3).logits

    assert float(expected.std()) > 0.1
    torch.testing.assert_close(logits, expected[:, -3:], rtol=0, atol=1e-5)


def test_every_parameter_of_the_module_is_a_tensor_of_the_family() -> None:
    """With its shape; speech output is not part of the module."""
    _, config, _ = PUBLISHED["Qwen2.5-Omni-3B"]
    family = family_of(config)
    specs = family.tensor_specs(family.parse_architecture(config))
    parameters = {name: tuple(value.shape) for name, value in qwen2_5_omni(config).named_parameters()}

    assert {name: spec.shape for spec in specs for name in spec.parameter_names} == parameters


def test_positions_are_those_of_transformers() -> None:
    """Sines, then cosines, bit for bit."""
    module = transformers.models.qwen2_5_omni.modeling_qwen2_5_omni.SinusoidsPositionEmbedding(300, 64)
    assert torch.equal(sinusoids(300, 64), module.positional_embedding)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_config": {"output_dim": 64}}, "an output of 64 for a hidden size of 128"),
        ({"audio_config": {"output_dim": 128, "n_window": 2000}}, "windows of 2000 frames with 1500 positions"),
        ({"audio_config": {"output_dim": 128, "activation_function": "relu"}}, "activation_function"),
    ],
)
def test_other_audio_encoders_are_rejected(changes: dict[str, Any], message: str) -> None:
    """Formats have only the published one."""
    config = {**TINY.config, "thinker_config": {**TINY.config["thinker_config"], **changes}}
    with pytest.raises(CheckpointError, match=message):
        family_of(config).parse_architecture(config)


def test_a_configuration_without_a_thinker_is_rejected() -> None:
    """The talker alone is not supported."""
    with pytest.raises(CheckpointError, match="thinker_config"):
        family_of({"model_type": "qwen2_5_omni"}).parse_architecture({"model_type": "qwen2_5_omni"})
