"""MiniCPM-o 2.6: sizes, prompts, and the torch module, compared with transformers and with its definition."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv1d, gelu, layer_norm, linear
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.family import Processor
from mcpmq.families.messages import Message
from mcpmq.families.minicpmo_audio import parse_audio
from mcpmq.families.modeling_minicpmo import MiniCPMOForConditionalGeneration, build
from tests.audio_tools import noise, waveform
from tests.tiny_families import MINICPM_O_2_6 as TINY

SEGMENT_SAMPLES = 480_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint."""
    return Checkpoint.open(TINY.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def processor(checkpoint: Checkpoint) -> Processor:
    """Its processor."""
    return checkpoint.family.open_processor(checkpoint.path)


@pytest.fixture(scope="module")
def module(checkpoint: Checkpoint) -> Any:
    """Its torch module, with weights."""
    module = build(checkpoint.config)
    weights = {spec.hub_name: checkpoint.load_float32(spec) for spec in checkpoint.specs}
    module.load_state_dict({name: weights[name].clone() for name, _ in module.named_parameters()}, assign=True)
    return module


@pytest.fixture(scope="module")
def encoding(checkpoint: Checkpoint) -> AudioEncoding:
    """Its audio settings."""
    return AudioEncoding.open(checkpoint.path, checkpoint.architecture.required_audio)


@torch.inference_mode()
def test_without_chunks_a_whole_segment_has_the_states_of_the_class_in_transformers(
    checkpoint: Checkpoint, module: MiniCPMOForConditionalGeneration, encoding: AudioEncoding
) -> None:
    """`WhisperEncoder` requires 30 seconds, and lets every frame attend to all."""
    settings = {**checkpoint.config["audio_config"], "num_hidden_layers": 2, "activation_function": "gelu"}
    published = WhisperEncoder(WhisperConfig(**settings)).eval()
    assert not published.load_state_dict(module.apm.state_dict()).missing_keys
    [features] = encoding.features([noise(30.0)])
    mel = torch.from_numpy(features)
    chunks = [layer.self_attn.chunk_frames for layer in module.apm.layers]  # type: ignore[union-attr]
    for layer in module.apm.layers:
        layer.self_attn.chunk_frames = 0  # type: ignore[union-attr]

    [states] = module.apm([mel])

    for layer, size in zip(module.apm.layers, chunks, strict=True):
        layer.self_attn.chunk_frames = size  # type: ignore[union-attr]
    assert chunks == [50, 50]
    torch.testing.assert_close(states, published(mel[None]).last_hidden_state[0], rtol=0, atol=2e-6)
    assert float((module.apm([mel])[0] - states).abs().max()) > 0.1  # the chunks change the states


@torch.inference_mode()
@pytest.mark.parametrize("seconds", [0.07, 0.99, 1.02, 2.31])
def test_features_are_those_of_the_definition(
    seconds: float, module: MiniCPMOForConditionalGeneration, encoding: AudioEncoding
) -> None:
    """Also of a part of a second, and of a second segment in the same call, to which the first does not attend."""
    segments = [encoding.features([noise(seconds)])[0], encoding.features([noise(0.51, seed=1)])[0]]
    longest = max(one.shape[1] for one in segments)
    padded = np.stack([np.pad(one, ((0, 0), (0, longest - one.shape[1])), constant_values=7) for one in segments])
    lengths = torch.tensor([one.shape[1] for one in segments])

    found = module.get_audio_features(torch.from_numpy(padded), lengths)

    expected = torch.cat([_features_by_definition(module, torch.from_numpy(one)) for one in segments])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert float(expected.std()) > 0.1


def _features_by_definition(module: Any, mel: Tensor) -> Tensor:
    """Compute every frame by itself: it attends to the frames of its second and of all earlier ones."""
    weights = {f"apm.{name}": value for name, value in module.apm.state_dict().items()}
    states = gelu(conv1d(mel[None], weights["apm.conv1.weight"], weights["apm.conv1.bias"], padding=1))
    states = gelu(conv1d(states, weights["apm.conv2.weight"], weights["apm.conv2.bias"], stride=2, padding=1))[0].T
    states = states + weights["apm.embed_positions.weight"][: len(states)]
    for number in range(2):
        states = torch.stack([_frame(weights, f"apm.layers.{number}", states, row) for row in range(len(states))])
    normed = layer_norm(states, [64], weights["apm.layer_norm.weight"], weights["apm.layer_norm.bias"])
    projector = module.audio_projection_layer
    projected = projector.linear2(projector.linear1(normed).clamp(min=0))
    return torch.stack([projected[row : row + 2].mean(0) for row in range(0, len(projected) - 1, 2)])


def _frame(weights: dict[str, Tensor], name: str, states: Tensor, row: int) -> Tensor:
    def layer(part: str, value: Tensor) -> Tensor:
        return linear(value, weights[f"{name}.{part}.weight"], weights.get(f"{name}.{part}.bias"))

    def norm(part: str, value: Tensor) -> Tensor:
        return layer_norm(value, [64], weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"])

    keyed = norm("self_attn_layer_norm", states[: (row // 50 + 1) * 50])
    query, keys, values = (layer(f"self_attn.{part}_proj", keyed) for part in "qkv")
    heads = [slice(head * 16, head * 16 + 16) for head in range(4)]
    scores = [(keys[:, head] @ query[row, head] / 4).softmax(0) @ values[:, head] for head in heads]
    state = states[row] + layer("self_attn.out_proj", torch.cat(scores))
    return state + layer("fc2", gelu(layer("fc1", norm("final_layer_norm", state))))


def test_audio_is_written_as_one_span_a_second(processor: Processor) -> None:
    """25 tokens each, with tags around them, and the rest; the order of image, audio and text is kept."""
    prompt = processor.encode_chat([Message("user", (waveform(2.31), "What?"))])
    tags = [processor.special_tokens[tag] for tag in ("<|audio_start|>", "<|audio_end|>", "<unk>")]

    lengths = (prompt.audio_bounds[:, 1] - prompt.audio_bounds[:, 0]).tolist()
    assert (lengths, prompt.spans_per_audio) == ([25, 25, 8], (3,))
    begin, end = prompt.audio_bounds.T
    assert set(prompt.tokens[begin - 1]) == {tags[0]}
    assert set(prompt.tokens[end]) == {tags[1]}
    assert set(prompt.tokens[prompt.audio_tokens]) == {tags[2]}


def test_audio_of_more_than_30_seconds_is_encoded_in_segments(
    processor: Processor, module: MiniCPMOForConditionalGeneration, encoding: AudioEncoding
) -> None:
    """Segments do not attend to each other; a rest that is too short for a token is left out."""
    long = waveform(31.0)
    samples, rest = long.samples, long.samples[SEGMENT_SAMPLES:]
    prompt = processor.encode_chat([Message("user", (long, "?"))])
    arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(prompt).items()}

    with torch.inference_mode():
        found = module.get_audio_features(arguments["audio_features"], arguments["audio_lengths"])
        parts = [torch.from_numpy(one)[None] for one in encoding.features([samples[:SEGMENT_SAMPLES], rest])]
        alone = [module.get_audio_features(one, torch.tensor([one.shape[2]])) for one in parts]

    assert arguments["audio_lengths"].tolist() == [3000, 100]
    assert len(found) == len(prompt.audio_tokens) == 775
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=2e-6)
    assert len(encoding.segments(samples[: SEGMENT_SAMPLES + 200])) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_config": None}, "audio_config"),
        ({"audio_pool_step": 5}, "audio_pool_step"),
        ({"audio_chunk_length": 0.0}, "audio_chunk_length"),
        ({"audio_config": {**TINY.config["audio_config"], "max_source_positions": 400}}, "400 positions, fewer than"),
        ({"audio_config": {**TINY.config["audio_config"], "activation_function": "relu"}}, "activation_function"),
    ],
)
def test_other_audio_encoders_are_rejected(changes: dict[str, Any], message: str) -> None:
    """Formats have only the published one."""
    config = {**TINY.config, **changes}
    with pytest.raises(CheckpointError, match=message):
        family_of(config).parse_architecture(config)


def test_the_chunk_length_is_that_of_the_configuration() -> None:
    """In encoder frames of 20 milliseconds; the published one is a second."""
    assert parse_audio({**TINY.config, "audio_chunk_length": 0.5}).chunk_frames == 25
    assert parse_audio(TINY.config).chunk_frames == 50


def test_the_order_of_a_mixed_prompt_is_kept(processor: Processor) -> None:
    """Text, audio, image and audio: spans of both kinds have the places of their parts."""
    content = ("First", waveform(0.4), Image.new("RGB", (56, 56)), waveform(0.2, seed=1), "then?")
    prompt = processor.encode_chat([Message("user", content)])

    first, second = prompt.audio_bounds[:, 0]
    assert first < prompt.image_bounds[0, 0] < second
    assert prompt.modality == "audio-image"
