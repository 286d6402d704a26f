"""Prompt format of a family: turn and image tokens. Data only, so planning needs no tokenizer."""

from dataclasses import dataclass
from typing import Literal

IMAGE_TAGS, IMAGE_ID_TAGS = ("<image>", "</image>", "<slice>", "</slice>"), ("<image_id>", "</image_id>")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Special tokens of a prompt. The fields from `slicing` to `image_span_input` apply to MiniCPM-V only.

    `video_time` is the time of a video in Qwen-VL: a position for every slice, positions in proportion to seconds, or
    timestamps in the text.
    """

    end_of_turn: str = "<|im_end|>"
    image_token: str = "<unk>"  # placeholder, one per image embedding
    video_token: str = ""  # placeholder of a frame's embeddings; "" if the frames are images
    video_time: Literal["index", "seconds", "text"] = "index"
    supports_video: bool = True
    content_separator: str = "\n"  # between images and texts of a message
    has_system_prompt: bool = True
    # Slicing algorithm: number of tokens per slice, their position ids, and the file with the slicing settings.
    slicing: Literal["queries", "configured", "merged", "canvas"] = "queries"
    video_max_slices: int = 2  # of images and frames of a prompt with a video whose frames are images
    video_has_id: bool = False  # `<image_id>0</image_id>` precedes a video with tokens of its own
    uses_image_id: bool = True  # `<image_id>0</image_id>` precedes an image
    image_tags_for_slices: bool = False  # slices have `<image>` tags; one `<slice>` pair encloses all of them
    image_span_input: Literal["bounds", "types", "none"] = "bounds"  # forward argument that locates the image tokens
    image_placeholder: str = ""  # text that a template writes for an image part; "": images are written into the text
    answer_prefix: str = ""  # text that a template writes before an answer, but not after the generation prompt
    image_markers: tuple[int, int] = (1, 1)  # tokens of an image before its first and after its last slice
    default_chat_template: str | None = None  # for checkpoints without a template file
    default_special_tokens: tuple[tuple[str, str], ...] = ()  # (name, text) of the tokenizer class in transformers
    vision_tags: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")  # around the image tokens of Qwen-VL
    audio_token: str = ""  # placeholder, one per audio embedding; "" for a model without audio
    audio_tags: tuple[str, str] = ("", "")  # around the audio tokens of a span
    audio_span_tokens: int = 0  # audio tokens of one span; 0: all tokens of an audio are one span

    @property
    def opening_tags(self) -> tuple[str, ...]:
        """Tags that precede the image tokens of a slice."""
        return ("<image>",) if self.image_tags_for_slices else ("<image>", "<slice>")

    @property
    def required_tokens(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have."""
        tags = (*IMAGE_TAGS, *(IMAGE_ID_TAGS if self.uses_image_id else ()))
        return (*tags, self.image_token, self.end_of_turn, *self.audio_tokens)

    @property
    def audio_tokens(self) -> tuple[str, ...]:
        """Special tokens of audio that the tokenizer must have; empty for a model without audio."""
        return (self.audio_token, *self.audio_tags) if self.audio_token else ()


MINICPM_V_FORMAT = PromptFormat()  # MiniCPM-V 2.6 to 4.5
