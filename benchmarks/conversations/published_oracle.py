"""Tokens and pixels of conversations by the published code of MiniCPM-V 2.0 to 4.5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil, ensure_divide

from benchmarks.conversations.draw import VIDEO_KINDS
from benchmarks.conversations.video_inputs import published_frames, read_rgb
from mcpmq.dataset import Turn, Video
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.family import Family
from mcpmq.system.json_file import read_json

PIXEL_TOLERANCE = 1e-6  # the order of additions and divisions differs


class PublishedImageProcessor(MiniCPMV4_6ImageProcessorPil):
    """The image processor of 4.6 with the size factor of 2.6, one patch."""

    def find_best_resize(
        self, image_size: tuple[float, float], scale_resolution: int, patch_size: int, *_: Any, **options: Any
    ) -> tuple[int, int]:
        """Return height and width in multiples of a patch."""
        height, width = map(int, image_size)
        if height * width > scale_resolution**2 or options.get("allow_upscale"):
            ratio = width / height
            height = int(scale_resolution / ratio**0.5)
            width = int(height * ratio)
        return ensure_divide(height, patch_size), ensure_divide(width, patch_size)


class PublishedOracle:
    """The algorithm of the published code of MiniCPM-V 2.0 to 4.5, with tags that are replaced after the template."""

    TAG = "(<image>./</image>)"
    video_kinds = VIDEO_KINDS
    pixel_tolerance, has_audio = PIXEL_TOLERANCE, False

    def __init__(self, checkpoint: Path, family: Family) -> None:
        """Open the tokenizer and the settings of a checkpoint."""
        self._config, self._format = read_json(checkpoint / "config.json"), family.prompt_format
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._template = ChatTemplate.open(checkpoint, self._format.default_chat_template)
        has_settings = self._format.slicing != "configured"
        given = read_json(checkpoint / "preprocessor_config.json") if has_settings else self._config
        settings = {name: given[name] for name in ("max_slice_nums", "scale_resolution")}
        self._image_processor = PublishedImageProcessor(**settings, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def encode(self, turns: Sequence[Turn]) -> dict[str, NDArray[Any]]:
        """Return the arrays of the prompt before the last answer: tokens, pixels and sizes."""
        contents = [[one for part in turn.content for one in _opened(part)] for turn in turns]
        texts = ["\n".join(one if isinstance(one, str) else self.TAG for one in content) for content in contents]
        messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, texts, strict=True)]
        text = self._template.render(messages[:-1])
        images = [one for content in contents for one in content if not isinstance(one, str)]
        has_video = any(turn.videos for turn in turns)
        options: dict[str, Any] = {"max_slice_nums": self._format.video_max_slices} if has_video else {}
        arrays = dict(self._image_processor(images=images, return_tensors="np", **options)) if images else {}
        for number in range(len(images)):
            tag = self._placeholder(None if has_video else number, list(arrays["grids"][number]))
            text = text.replace(self.TAG, tag, 1)
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        return {"input_ids": np.array([tokens]), **arrays}

    def _placeholder(self, number: int | None, grid: Sequence[int]) -> str:
        queries = self._format.image_token * self._config["query_num"]
        rows, columns = grid
        if self._format.image_tags_for_slices:
            lines = "\n".join([f"<image>{queries}</image>" * columns] * rows)
            return f"<image>{queries}</image>" + (f"<slice>{lines}</slice>" if rows else "")
        lines = "\n".join([f"<slice>{queries}</slice>" * columns] * rows)
        tag = "" if number is None else f"<image_id>{number}</image_id>"
        return f"{tag}<image>{queries}</image>{lines}"

    def positions(self, _: Mapping[str, NDArray[Any]]) -> None:
        """Return None: the positions are consecutive."""


def _opened(part: Any) -> list[str | Image.Image]:
    """Return a text, an image, or the frames of a video, which the published usage samples."""
    if isinstance(part, Video):
        return list(published_frames(part))
    return [part if isinstance(part, str) else read_rgb(part)]
