"""Model inputs of Qwen2.5-Omni: images as in Qwen2.5-VL, and audio."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mcpmq.families import family_of
from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.config_schema import required_table
from mcpmq.families.inputs import Inputs
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.qwenvl_inputs import QwenVlProcessor
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.system.json_file import read_json


@dataclass(frozen=True, slots=True)
class QwenOmniProcessor(QwenVlProcessor):
    """Encodes samples with the tokenizer, chat template and preprocessor settings of a checkpoint."""

    @staticmethod
    def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a raw config.json that describes the language model."""
        thinker = required_table(config, "thinker_config")
        return {**thinker, **(thinker.get("text_config") or {})}

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        Those of Qwen2.5-VL without `mm_token_type_ids`; `attention_mask` int64 [1, tokens], without which the module
        computes no M-RoPE positions; with audio `input_features` float32 [audios, mel bins, frames] and
        `feature_attention_mask` int64 [audios, frames], 1 for the frames of each audio.
        """
        # Two-argument super() does not work in a dataclass with slots.
        arguments = QwenVlProcessor.model_inputs(self, inputs)
        arguments.pop("mm_token_type_ids", None)
        arguments["attention_mask"] = np.ones_like(arguments["input_ids"])
        return arguments | self._audio_arguments(inputs)

    def _audio_arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        if not inputs.audio:
            return {}
        assert self.audio_encoding is not None
        features = self.audio_encoding.features(inputs.audio)
        frames = [one.shape[1] for one in features]
        padded = [np.pad(one, ((0, 0), (0, max(frames) - one.shape[1]))) for one in features]
        mask = np.arange(max(frames)) < np.array(frames)[:, None]
        return {"input_features": np.stack(padded), "feature_attention_mask": mask.astype(np.int64)}


@dataclass(frozen=True, slots=True)
class OmniInputs:
    """Graph inputs of images and audio, and position ids of encoded samples."""

    resizing: Resizing
    audio: AudioEncoding

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the settings of both encoders."""
        config = read_json(folder / "config.json")
        shape = family_of(config).parse_architecture(config).required_audio
        return cls(Resizing.open(folder), AudioEncoding.open(folder, shape))

    def image_tokens(self, width: int, height: int, num_queries: int) -> int:
        """Return the number of tokens of an image; see `Resizing.image_tokens`."""
        return self.resizing.image_tokens(width, height, num_queries)

    def graph_inputs(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one image; see `Resizing.graph_inputs`."""
        return self.resizing.graph_inputs(pixels)

    def audio_graph_inputs(self, waveform: NDArray[np.float32]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the inputs of the audio graph; see `AudioEncoding.graph_inputs`."""
        return self.audio.graph_inputs(waveform)

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Compute time, row and column of each token: int64 [3, length]; audio tokens count as text."""
        return self.resizing.position_ids(inputs)


open_processor = QwenOmniProcessor.open


def open_vision_inputs(folder: Path, _: PromptFormat) -> OmniInputs:
    """Open the settings of both encoders."""
    return OmniInputs.open(folder)
