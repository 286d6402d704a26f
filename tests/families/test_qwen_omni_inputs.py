"""Tokens, features and position ids of Qwen2.5-Omni, compared with the processor and the model of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Audio, Turn
from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.inputs import Inputs
from mcpmq.families.messages import Message
from mcpmq.families.qwen2_5omni import QWEN2_5_OMNI
from mcpmq.families.qwen_omni_inputs import QwenOmniProcessor, open_vision_inputs
from tests.audio_tools import noise, waveform, write_wav
from tests.checkpoint_tools import edit_json
from tests.tiny_families import QWEN2_5_OMNI as TINY

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8))
MEDIA = {"image": "<|vision_bos|><|IMAGE|><|vision_eos|>", "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Tiny Qwen2.5-Omni."""
    return Checkpoint.open(TINY.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def processor(checkpoint: Checkpoint) -> QwenOmniProcessor:
    """Processor of the tiny checkpoint."""
    return QwenOmniProcessor.open(checkpoint.path, QWEN2_5_OMNI.prompt_format)


def _published_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the processor of transformers; its video processor, which needs another library, has no settings."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    names = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO", "vision_bos": "vision_bos"}
    names |= {name: name for name in ("vision_eos", "audio_bos", "audio_eos")}
    for name, text in names.items():
        setattr(tokenizer, f"{name}_token", f"<|{text}|>")
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{text}|>"))

    def initialize(self: Any, image_processor: Any, video_processor: Any, *parts: Any, **_: Any) -> None:
        self.image_processor, self.video_processor = image_processor, video_processor
        self.feature_extractor, self.tokenizer, self.chat_template = *parts, None

    monkeypatch.setattr(transformers.ProcessorMixin, "__init__", initialize)
    extractor = transformers.WhisperFeatureExtractor(feature_size=32, chunk_length=30, return_attention_mask=True)
    image_processor = Qwen2VLImageProcessorPil(**settings)
    return transformers.Qwen2_5OmniProcessor(image_processor, image_processor, extractor, tokenizer)


def _encode(processor: QwenOmniProcessor, *content: Any) -> Inputs:
    return processor.encode_chat([Message("user", content)])


def test_arrays_are_those_of_transformers(
    checkpoint: Checkpoint, processor: QwenOmniProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, patches, spectrograms and masks of a prompt with texts, an image and two audios of different length."""
    audio = [waveform(1.5), waveform(0.33, seed=1)]
    content = ("Here", audio[0], IMAGE, "and", audio[1], "How many?")
    text = f"Here{MEDIA['audio']}{MEDIA['image']}and{MEDIA['audio']}How many?"
    prompt = processor.template.render([{"role": "user", "content": text}])
    published = _published_processor(checkpoint.path, monkeypatch)
    options = {"audio": [one.samples for one in audio], "images": [IMAGE], "return_tensors": "np"}
    expected = published(text=[prompt], **options)

    arguments = processor.model_inputs(_encode(processor, *content))

    np.testing.assert_array_equal(arguments["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(arguments["image_grid_thw"], expected["image_grid_thw"])
    np.testing.assert_allclose(arguments["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    frames, mask = arguments["feature_attention_mask"].shape[1], expected["feature_attention_mask"]
    np.testing.assert_array_equal(arguments["feature_attention_mask"], mask[:, :frames])
    assert mask[:, frames:].sum() == 0
    features = expected["input_features"][..., :frames] * mask[:, None, :frames]
    np.testing.assert_allclose(arguments["input_features"], features, rtol=0, atol=5e-5)  # float32 in torch


@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.99, 2.0, 2.01, 3.37])
def test_token_counts_are_those_of_the_encoder(seconds: float, processor: QwenOmniProcessor) -> None:
    """Two convolutions and pooling: about 25 tokens per second."""
    inputs = _encode(processor, waveform(seconds), "What?")
    frames = processor.model_inputs(inputs)["feature_attention_mask"].sum()
    [[start, end]] = inputs.audio_bounds

    assert end - start == len(inputs.audio_tokens) == ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert (inputs.modality, inputs.spans_per_audio) == ("audio", (1,))
    assert set(inputs.tokens[start:end]) == {processor.special_tokens["<|AUDIO|>"]}


def test_positions_are_those_of_transformers(checkpoint: Checkpoint, processor: QwenOmniProcessor) -> None:
    """Time, row and column before, between and after images and audio."""
    config = transformers.Qwen2_5OmniThinkerConfig(**checkpoint.config["thinker_config"])
    with torch.device("meta"):
        model: Any = transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    graph = open_vision_inputs(checkpoint.path, QWEN2_5_OMNI.prompt_format)
    for content in (("a", IMAGE, waveform(1.0), "b"), (waveform(0.4), "a", IMAGE, "b", IMAGE), (waveform(0.1), "b")):
        inputs = _encode(processor, *content)
        arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(inputs).items()}
        lengths = arguments["feature_attention_mask"].sum(1)
        grids, mask = arguments.get("image_grid_thw"), arguments["attention_mask"]

        expected, _ = model.get_rope_index(
            arguments["input_ids"], image_grid_thw=grids, attention_mask=mask, audio_seqlens=lengths
        )

        np.testing.assert_array_equal(graph.position_ids(inputs), expected[:, 0].numpy())


def test_samples_with_audio_are_encoded(processor: QwenOmniProcessor, tmp_path: Path) -> None:
    """The file is read as mono at 16 kHz; audio and image tokens precede the question and the answer."""
    file = write_wav(tmp_path / "a.wav", 1.0)
    turns = [Turn("user", (Audio(file), "How many?")), Turn("assistant", ("two",))]

    inputs = processor.encode_turns("one", turns)

    np.testing.assert_allclose(inputs.audio[0], noise(1.0), rtol=0, atol=2**-15)
    prompt = processor.tokenizer.decode(inputs.tokens[: inputs.answer_start].tolist(), skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|audio_bos|>{'<|AUDIO|>' * 25}<|audio_eos|>How many?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("seconds", "message"), [(0.01, "0.01 seconds has no token"), (30.5, "more than 30")])
def test_short_and_long_audio_is_rejected(seconds: float, message: str, processor: QwenOmniProcessor) -> None:
    """Transformers fails for the former and cuts off the latter."""
    with pytest.raises(DatasetError, match=message):
        _encode(processor, waveform(seconds), "What?")


def test_another_number_of_mel_bins_is_rejected(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The error has the values of both files."""
    for file in checkpoint.path.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit_json(tmp_path / "preprocessor_config.json", feature_size=80)

    with pytest.raises(CheckpointError, match="`num_mel_bins` is 32 in config.json but 80"):
        QwenOmniProcessor.open(tmp_path, QWEN2_5_OMNI.prompt_format)
