"""The modality of every token of a sample, and of every input row of a component."""

from collections.abc import Mapping
from contextvars import ContextVar

import torch
from torch import Tensor

from mcpmq.calibrate.observers import TokenModalities
from mcpmq.families.inputs import Inputs
from mcpmq.families.modeling_experts import routed_tokens
from mcpmq.rounding.stats import ANSWER, AUDIO, MODALITIES, TEXT, VISION

HEAD, LANGUAGE = "head", "language"  # components with tokens as input; all others are those of an encoder
AUDIO_COMPONENTS = ("audio", "audio_projector")

# The modality of every token of the sample in its forward pass; each sample runs in a context of its own.
sample_modalities: ContextVar[Tensor] = ContextVar("modalities")


def token_modalities(inputs: Inputs) -> Tensor:
    """Return the modality of every token, uint8 [tokens], an index into MODALITIES.

    Tokens inside an image span are vision, those inside an audio span audio; those of the answers of all turns are
    answer; all others are text.
    """
    modalities = torch.full((len(inputs.tokens),), TEXT, dtype=torch.uint8)
    modalities[torch.from_numpy(inputs.measured)] = ANSWER
    for begin, end in inputs.image_bounds.tolist():
        modalities[begin:end] = VISION
    modalities[torch.from_numpy(inputs.audio_tokens)] = AUDIO
    return modalities


def is_predicted(modalities: Tensor) -> Tensor:
    """Return whether the head receives a token: all but those of images and audio."""
    return (modalities != VISION) & (modalities != AUDIO)


def encoder_modality(component: str) -> int:
    """Return the modality of the inputs of an encoder or connector, an index into MODALITIES; TEXT for others."""
    if component in (HEAD, LANGUAGE):
        return TEXT
    return AUDIO if component in AUDIO_COMPONENTS else VISION


def modality_labels(component: str, weights: Mapping[str, float]) -> TokenModalities:
    """Return the modalities and weights of a component's input tokens; in those of encoders every weight is 1."""
    if component not in (HEAD, LANGUAGE):
        ones = torch.ones(len(MODALITIES))
        modality = encoder_modality(component)
        return TokenModalities(lambda count: torch.full((count,), modality, dtype=torch.uint8), ones)
    modality_ids = _head_tokens if component == HEAD else _all_tokens
    return TokenModalities(modality_ids, torch.tensor([weights[name] for name in MODALITIES]))


def _all_tokens(_: int) -> Tensor:
    """Return the modalities of all tokens; in an expert, of those that are routed to it."""
    tokens = routed_tokens.get()
    return sample_modalities.get() if tokens is None else sample_modalities.get()[tokens.cpu()]


def _head_tokens(_: int) -> Tensor:
    modalities = sample_modalities.get()
    return modalities[is_predicted(modalities)]
