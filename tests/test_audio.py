"""Families with an audio encoder: prompts with audio in all engines, calibration, and artifacts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.families.audio_shape import AudioShape
from mcpmq.families.family import Processor
from mcpmq.families.inputs import Inputs
from mcpmq.families.log_mel import LogMel
from mcpmq.families.messages import Message
from mcpmq.families.whisper import sinusoids
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners import gguf, onnx
from mcpmq.runners.generation import generate
from mcpmq.runners.gguf import AUDIO_NOTE
from mcpmq.runners.torch import TorchRunner
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.serving.gguf import AUDIO_NOTE as SILENCE_NOTE
from tests.audio_tools import noise, waveform, write_wav
from tests.commands import Command
from tests.gguf_tools import export_gguf
from tests.loss_tools import answer_losses
from tests.onnx_tools import write_onnx_artifact
from tests.reference_model import greedy_tokens, reference_model
from tests.tiny_families import MINICPM_O_2_6, QWEN2_5_OMNI, TinyFamily

FAMILIES = [QWEN2_5_OMNI, MINICPM_O_2_6]
SEGMENT_SAMPLES, SEGMENT_TOKENS = 480_000, 750  # of 30 seconds, which llama.cpp encodes at once
NOISE_TOKENS = 58  # of 2.31 seconds


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda tiny: tiny.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint of each family with an audio encoder."""
    tiny: TinyFamily = request.param
    return Checkpoint.open(tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def processor(checkpoint: Checkpoint) -> Processor:
    """Its processor."""
    return checkpoint.family.open_processor(checkpoint.path)


@pytest.fixture(scope="module")
def full(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """Unquantized model."""
    return quantize(make_plan(checkpoint, Recipe.load("full")), tmp_path_factory.mktemp("quantized") / "full")


@pytest.fixture(scope="module")
def prompts(processor: Processor) -> list[Inputs]:
    """Prompts with one audio of parts of chunks, and with two and a text between them."""
    contents = [(waveform(2.31), "How many?"), ("Here", waveform(0.4, seed=1), "and", waveform(4.0, seed=2))]
    return [processor.encode_chat([Message("user", content)]) for content in contents]


@pytest.fixture(scope="module")
def onnx_folder(full: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized model in ONNX."""
    return write_onnx_artifact(full, tmp_path_factory.mktemp("onnx") / "full")


def test_onnx_generates_the_tokens_of_torch(
    full: QuantizedModel, processor: Processor, prompts: list[Inputs], onnx_folder: Path
) -> None:
    """After prompts with audio, also with a cache in torch; and a text prompt needs no audio."""
    module, cached, runner = reference_model(full), open_torch(full.path, 1), onnx.open_runner(onnx_folder, 1)
    cached.load_all()
    text = processor.encode_chat([Message("user", ("How many?",))])
    for prompt in (*prompts, text):
        expected = greedy_tokens(module, processor.model_inputs, prompt, 5)
        assert list(generate(cached.predict(prompt), 5)) == expected
        assert list(runner.generate(prompt, 5)) == expected


@pytest.mark.parametrize("seconds", [0.07, 0.99, 1.0, 2.0, 2.01, 3.37])
def test_onnx_has_the_audio_features_of_torch(
    seconds: float, full: QuantizedModel, processor: Processor, onnx_folder: Path
) -> None:
    """For audio shorter than a chunk, of whole chunks, and with a rest."""
    prompt = processor.encode_chat([Message("user", (waveform(seconds), "?"))])
    expected = _torch_features(open_torch(full.path, 1), prompt)

    features = onnx.open_runner(onnx_folder, 1).encode_audio(prompt.audio[0])

    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.1


def test_encoders_are_freed_before_the_language_model(prompts: list[Inputs], onnx_folder: Path) -> None:
    """Features that were computed before give the same tokens."""
    whole = onnx.open_runner(onnx_folder, 1)
    embeddings = onnx.encode_images(onnx_folder, 1, prompts)
    runner = onnx.open_language_model(onnx_folder, 1, embeddings)
    for prompt in prompts:
        assert list(runner.generate(prompt, 3)) == list(whole.generate(prompt, 3))


def _torch_features(runner: TorchRunner, prompt: Inputs) -> np.ndarray:
    """Return the rows of the first language layer's input at the audio tokens."""
    runner.load_all()
    found: list[Tensor] = []
    layers = next(one for name, one in runner.model.module.named_modules() if name.endswith("model.layers"))
    assert isinstance(layers, nn.ModuleList)
    handle = layers[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    next(runner.predict(prompt))
    handle.remove()
    return found[0][0, prompt.audio_tokens].numpy()


def test_gguf_has_the_features_of_a_segment_of_30_seconds(
    full: QuantizedModel, prompts: list[Inputs], tmp_path: Path
) -> None:
    """llama.cpp's function in torch, with the weights of the file; rounding to F16 is its only difference.

    The features differ from those of the original, as the caveats state.
    """
    artifact = export_gguf(_with_glma(full), tmp_path)
    [prompt, _], runner = prompts, gguf.open_runner(artifact.path, 1, f32_attention=True)
    count = len(prompt.audio_tokens)
    encoder = open_torch(full.path, 1)
    original = _torch_features(encoder, prompt)
    expected = _whole_segment(encoder.model.module, prompt.audio[0], full.architecture.required_audio)

    features = runner._vision.encode_audio(prompt.audio[0])

    assert len(features) == SEGMENT_TOKENS
    assert _relative_error(features[:count], expected[:count]) < 0.005
    assert _relative_error(expected[:count], original) > 0.02
    losses = list(answer_losses(runner, [_answered(prompt)]))
    assert np.isfinite(losses[0]).all()
    assert runner.notes == (AUDIO_NOTE,)


def test_gguf_has_whole_segments(full: QuantizedModel, tmp_path: Path) -> None:
    """llama.cpp adds a segment of silence to audio of exactly 30 seconds."""
    runner = gguf.open_runner(export_gguf(_with_glma(full), tmp_path).path, 1)

    lengths = [len(runner._vision.encode_audio(noise(seconds))) for seconds in (29.9, 30.0, 35.0)]

    assert lengths == [SEGMENT_TOKENS, 2 * SEGMENT_TOKENS, 2 * SEGMENT_TOKENS]


def test_run_answers_prompts_with_audio(
    mcpmq: Command,
    checkpoint: Checkpoint,
    full: QuantizedModel,
    prompts: list[Inputs],
    onnx_folder: Path,
    tmp_path: Path,
) -> None:
    """llama.cpp adds the tokens of the silence, with a note; `--exact` has the prompt of the other engines."""
    file, artifact = write_wav(tmp_path / "noise.wav", seconds=2.31), export_gguf(_with_glma(full), tmp_path).path
    options = "--audio", file, "--max-tokens", 3, "--threads", 1, "--json"
    commands = (onnx_folder,), (artifact, "--exact", "--source", checkpoint.path), (artifact,)

    answers = [json.loads(mcpmq("run", *command, "How many?", *options).stdout) for command in commands]

    onnx_tokens, exact_tokens, tokens = (answer["prompt_tokens"] for answer in answers)
    assert onnx_tokens == exact_tokens
    tags = 2 * (len(prompts[0].audio_bounds) - 1)  # one span has all tokens of a segment
    assert tokens == onnx_tokens - NOISE_TOKENS - tags + SEGMENT_TOKENS
    assert [answer["notes"] for answer in answers] == [[], [], [SILENCE_NOTE]]


def test_run_rejects_audio_for_a_model_without_an_encoder(
    mcpmq: Command, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """GGUF and ONNX have the same error."""
    file = write_wav(tmp_path / "noise.wav", seconds=0.1)
    for artifact in tiny_exports:
        result = mcpmq("run", artifact.path, "How many?", "--audio", file, "--threads", 1)

        assert result.exit_code == 1
        assert "the chat has audio, but the model has no audio encoder" in result.stderr


def _with_glma(full: QuantizedModel) -> QuantizedModel:
    """Return a model with the recipe that writes the audio of MiniCPM-o into GGUF."""
    manifest = full.artifact.manifest
    if full.architecture.required_audio.kind == "minicpm-o":
        manifest = manifest.model_copy(update={"recipe": {**manifest.recipe, "gguf_audio": "glma"}})
    return replace(full, artifact=replace(full.artifact, manifest=manifest))


def _whole_segment(model: Any, samples: np.ndarray, shape: AudioShape) -> np.ndarray:
    """Encode one segment with positions of 30 seconds and attention to all frames."""
    padded = np.pad(samples, (0, SEGMENT_SAMPLES - len(samples)))
    mel = torch.from_numpy(LogMel(feature_size=shape.num_mel_bins).features(padded))[None]
    if shape.kind == "minicpm-o":
        for layer in model.apm.layers:
            layer.self_attn.chunk_frames = 0
        with torch.inference_mode():
            return np.asarray(model.get_audio_features(mel, torch.tensor([mel.shape[2]])))
    tower: Any = model.get_submodule("model.audio_tower")
    with torch.inference_mode():
        states = gelu(tower.conv2(gelu(tower.conv1(mel)))).transpose(1, 2)[0]
        states = states + sinusoids(*states.shape)
        for layer in tower.layers:
            [states] = layer(states, cu_seqlens=torch.tensor([0, len(states)]))
        features: np.ndarray = tower.proj(tower.ln_post(states.unflatten(0, (-1, 2)).mean(1))).numpy()
    return features


def _answered(prompt: Inputs) -> Inputs:
    return replace(prompt, tokens=np.append(prompt.tokens, [5, 6, 7]))


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
