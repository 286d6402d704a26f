"""Model inputs of MiniCPM-o: images as in MiniCPM-V, and audio."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.minicpmv_inputs import open_vision_inputs as open_slicing
from mcpmq.families.omni_inputs import OmniInputs, open_audio, padded_features
from mcpmq.families.prompt_format import PromptFormat


@dataclass(frozen=True, slots=True)
class MiniCpmOProcessor(MiniCpmVProcessor):
    """Encodes samples with the tokenizer, chat template and preprocessor settings of a checkpoint."""

    @staticmethod
    def open_audio(checkpoint: Path) -> AudioEncoding:
        """Open the settings of the audio encoder."""
        return open_audio(checkpoint)

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        Those of MiniCPM-V; with audio `audio_features` float32 [segments, mel bins, frames], `audio_lengths` int64
        [segments], the frames of each, and `audio_bound` int64 [spans, 2].
        """
        # Two-argument super() does not work in a dataclass with slots.
        arguments = MiniCpmVProcessor.model_inputs(self, inputs)
        if self.audio_encoding is None or not inputs.audio:
            return arguments
        features, frames = padded_features(self.audio_encoding, inputs)
        return arguments | {
            "audio_features": features,
            "audio_lengths": frames,
            "audio_bound": inputs.audio_bounds,
        }


open_processor = MiniCpmOProcessor.open


def open_vision_inputs(folder: Path, prompt_format: PromptFormat) -> OmniInputs:
    """Open the settings of both encoders."""
    return OmniInputs.open(folder, open_slicing(folder, prompt_format))
