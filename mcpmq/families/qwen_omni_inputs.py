"""Model inputs of Qwen2.5-Omni: images as in Qwen2.5-VL, and audio."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.config_schema import required_table
from mcpmq.families.inputs import Inputs
from mcpmq.families.omni_inputs import OmniInputs, padded_features
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.qwenvl_inputs import QwenVlProcessor
from mcpmq.families.qwenvl_resizing import Resizing


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
        if self.audio_encoding is None or not inputs.audio:
            return {}
        features, frames = padded_features(self.audio_encoding, inputs)
        mask = np.arange(features.shape[2]) < frames[:, None]
        return {"input_features": features, "feature_attention_mask": mask.astype(np.int64)}


open_processor = QwenOmniProcessor.open


def open_vision_inputs(folder: Path, _: PromptFormat) -> OmniInputs:
    """Open the settings of both encoders."""
    return OmniInputs.open(folder, Resizing.open(folder))
