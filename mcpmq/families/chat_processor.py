"""Encoding of samples and chats, the same in all families but for text and token spans of images, videos and audio."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from mcpmq.dataset import Audio, ImageSource, Part, Sample, Turn, Video
from mcpmq.errors import DatasetError
from mcpmq.families.answer_spans import answer_characters, token_spans
from mcpmq.families.audio_inputs import AudioEncoding, PromptAudio
from mcpmq.families.chat_template import ChatTemplate, PartsTemplate
from mcpmq.families.images import open_audio, open_image
from mcpmq.families.inputs import Inputs
from mcpmq.families.messages import Message, template_messages, template_parts
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tokenizer import check_special_tokens, check_tokens, token_ids
from mcpmq.families.video_frames import VideoFrames, open_video
from mcpmq.system.audio_file import Waveform

CHAT = "the chat"  # in messages


class PromptMedia(Protocol):
    """The images and videos of one prompt, in their order; the properties are those of `Inputs`."""

    @property
    def slices(self) -> Sequence[NDArray[np.uint8]]:
        """Pixels of the slices of all images and videos."""

    @property
    def slices_per_image(self) -> Sequence[int]:
        """Number of slices of each image, video or frame of a video."""

    @property
    def frame_intervals(self) -> Sequence[float]:
        """Seconds between the slices or frames of each video, 0 for an image."""

    @property
    def slice_times(self) -> Sequence[int]:
        """Time position of each slice in its video."""

    def text(self, image: Image.Image) -> str:
        """Add an image, and return the text with its tokens."""

    def video_text(self, video: VideoFrames) -> str:
        """Add a video, and return the text with its tokens.

        Raises:
            DatasetError: the frames cannot be read, differ in size, or are too few.
        """

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the image tokens of every slice: int64 [slices, 2].

        Raises:
            CheckpointError: the chat template drops image tokens.
        """


@dataclass(frozen=True, slots=True)
class ChatProcessor(Protocol):
    """Encodes samples and chats with the tokenizer and the chat template of a checkpoint.

    A family defines `prompt_media`, and `audio_encoding` if its models have an audio encoder.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    vocab_size: int
    context_length: int
    special_tokens: Mapping[str, int]  # control tokens, not allowed in texts; token -> id
    prompt_format: PromptFormat

    def prompt_media(self, label: str, count: int, has_video: bool) -> PromptMedia:
        """Return the images and videos of a new prompt, which will have `count`; `label` names the prompt.

        Raises:
            DatasetError: there are more than the model accepts.
        """

    @property
    def audio_encoding(self) -> AudioEncoding | None:
        """Conversion of audio; None for a model without an audio encoder."""
        return None

    def encode(self, sample_id: str, image: ImageSource | None, prompt: str, answer: str) -> Inputs:
        """Encode a prompt, after its image if any, and the answer to it; see `encode_turns`."""
        return self.encode_turns(sample_id, Sample.from_prompt(sample_id, image, prompt, answer).turns)

    def encode_turns(self, sample_id: str, turns: Sequence[Turn]) -> Inputs:
        """Encode a conversation that ends with an answer; without an image it has no image tags.

        The tokens are those of the prompt for the last answer, then those of this answer.

        Raises:
            DatasetError: an image is not valid or not accepted, a text contains a special token, or the sample is too
                long.
            CheckpointError: a token id is not below the vocabulary size, or the chat template drops image tokens or
                answers.
        """
        label = f"sample `{sample_id}`"
        videos = sum(len(turn.videos) for turn in turns)
        media = self.prompt_media(label, videos + sum(len(turn.images) for turn in turns), has_video=videos > 0)
        audio = self._prompt_audio(label, any(turn.audio for turn in turns))
        messages = [_message(sample_id, turn) for turn in turns]
        self._check_texts(label, messages)
        answer = self.prompt_format.answer_prefix + messages[-1].texts[-1] + self.prompt_format.end_of_turn
        return replace(self._encode(label, messages[:-1], answer, media, audio), id=sample_id)

    def encode_chat(self, messages: Sequence[Message]) -> Inputs:
        """Encode the prompt for the next message of a chat.

        Raises:
            DatasetError: a text contains a special token, there are more images than the model accepts, a video that it
                does not accept, or the chat is too long.
            CheckpointError: a token id is not below the vocabulary size, or the chat template drops image tokens.
        """
        videos = sum(len(one.videos) for one in messages)
        media = self.prompt_media(CHAT, videos + sum(len(one.images) for one in messages), has_video=videos > 0)
        audio = self._prompt_audio(CHAT, any(one.audio for one in messages))
        self._check_texts(CHAT, messages)
        return self._encode(CHAT, messages, "", media, audio)

    def _prompt_audio(self, label: str, is_used: bool) -> PromptAudio | None:
        """Return the audios of a new prompt, or None if it has none.

        Raises:
            DatasetError: it has audio, and the model has no audio encoder.
        """
        if not is_used:
            return None
        if self.audio_encoding is None:
            hint = "ask without audio" if label == CHAT else "use a dataset without audio"
            raise DatasetError(f"{label} has audio, but the model has no audio encoder", hint)
        return PromptAudio(self.audio_encoding, self.prompt_format, self.special_tokens, label)

    def _check_texts(self, label: str, messages: Sequence[Message]) -> None:
        check_special_tokens(label, self.special_tokens, *(text for one in messages for text in one.texts))
        if not self.prompt_format.has_system_prompt and any(one.role == "system" for one in messages):
            raise DatasetError(f"{label} has a system prompt, but the model has none", "write it into the first prompt")

    def _encode(
        self, label: str, messages: Sequence[Message], answer: str, media: PromptMedia, audio: PromptAudio | None
    ) -> Inputs:
        template, rendered = self._template_messages(messages, media, audio.text if audio else no_audio)
        prompt = template.render(rendered)
        encoding = self.tokenizer.encode(prompt, add_special_tokens=False)
        tokens = np.array([*encoding.ids, *token_ids(self.tokenizer, answer)], dtype=np.int64)
        check_tokens(label, tokens, self.vocab_size, self.context_length)
        around = self.prompt_format.end_of_turn, self.prompt_format.answer_prefix
        spans = answer_characters(template, rendered, prompt, *around) if answer else ()
        return Inputs(
            label,
            tokens,
            len(encoding.ids),
            tuple(media.slices),
            media.bounds(tokens),
            earlier_answers=np.array(token_spans(encoding, spans), np.int64).reshape(-1, 2),
            slices_per_image=tuple(media.slices_per_image),
            frame_intervals=tuple(media.frame_intervals) if any(media.frame_intervals) else (),
            slice_times=tuple(media.slice_times) if any(media.slice_times) else (),
            **(audio.inputs(tokens) if audio else {}),
        )

    def _template_messages(
        self, messages: Sequence[Message], media: PromptMedia, audio_text: Callable[[Waveform], str]
    ) -> tuple[ChatTemplate | PartsTemplate, list[dict[str, Any]]]:
        """Return the template and its messages, with the images in their texts or as parts."""

        def text(part: Image.Image | VideoFrames) -> str:
            return media.video_text(part) if isinstance(part, VideoFrames) else media.text(part)

        placeholder = self.prompt_format.image_placeholder
        if not placeholder:
            return self.template, template_messages(messages, text, audio_text, self.prompt_format.content_separator)
        texts = [media.text(image) for message in messages for image in message.images]
        return PartsTemplate(self.template, placeholder, texts), template_parts(messages)


def no_audio(audio: Waveform) -> str:
    """Raise an error: a prompt with audio has a `PromptAudio`."""
    raise AssertionError("the prompt has no audio")


def check_video(label: str, has_video: bool, prompt_format: PromptFormat) -> None:
    """Check that a prompt has no video that the family does not support.

    Raises:
        DatasetError: it has one; `label` names the prompt.
    """
    if has_video and not prompt_format.supports_video:
        raise DatasetError(
            f"{label} has a video, which mcpmq does not support for this model", "give its frames as images"
        )


def _message(sample_id: str, turn: Turn) -> Message:
    return Message(turn.role, tuple(_opened(sample_id, part) for part in turn.content))


def _opened(sample_id: str, part: Part) -> str | Image.Image | VideoFrames | Waveform:
    if isinstance(part, str):
        return part
    if isinstance(part, Video):
        return open_video(sample_id, part)
    return open_audio(sample_id, part) if isinstance(part, Audio) else open_image(sample_id, part)
