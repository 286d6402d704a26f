"""Hyperparameters of audio encoders, and the number of tokens that they give."""

from dataclasses import dataclass
from typing import Literal

AudioKind = Literal["qwen2.5-omni", "minicpm-o"]
SAMPLES_PER_MEL_FRAME, ENCODER_FRAMES_PER_SECOND = 160, 50  # of Whisper, at 16 kHz


@dataclass(frozen=True, slots=True)
class AudioShape:
    """Hyperparameters of an audio encoder with the layers of Whisper (arXiv 2212.04356), and of its connector.

    The second convolution halves the number of frames: an encoder frame is 20 ms. `chunk_frames` encoder frames attend
    to each other; with `attends_to_earlier_chunks` also to the chunks before theirs, else positions begin at 0 in every
    chunk.
    """

    kind: AudioKind  # selects the writer of each format
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    num_mel_bins: int
    num_positions: int  # encoder frames
    chunk_frames: int  # encoder frames; 0: all frames are one chunk
    pool_size: int  # encoder frames per token
    attends_to_earlier_chunks: bool = False
    max_segment_seconds: int = 0  # longer audio is encoded in segments; 0: no limit
    norm_epsilon: float = 1e-5

    def num_tokens(self, num_samples: int) -> int:
        """Return the number of audio tokens of samples at 16 kHz; 0 if they are too few for one token."""
        mel_frames = -(-num_samples // SAMPLES_PER_MEL_FRAME)
        return ((mel_frames + 1) // 2) // self.pool_size

    def __str__(self) -> str:
        tokens = f"{ENCODER_FRAMES_PER_SECOND / self.pool_size:g} tokens per second"
        return f"{self.num_layers} layers of width {self.hidden_size}, {tokens}"
