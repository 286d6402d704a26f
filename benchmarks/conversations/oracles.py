"""Tokens, pixels and positions of conversations from the processors and models of transformers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil, ensure_divide
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.conversations.draw import VIDEO_KINDS
from benchmarks.conversations.video_inputs import published_frames, read_rgb, video_options
from benchmarks.conversations.video_processors import processor_class
from mcpmq.dataset import Turn, Video
from mcpmq.families import modeling_transformers
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.family import Family
from mcpmq.system.json_file import read_json, read_optional_json

# Chat templates that accept texts, and lists of parts as the published ones do.
CHAT_ML = (
    "{{% for message in messages %}}{default}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% elif part['type'] == 'video' %}}{video}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% if not loop.last %}}{{{{ {separator} }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
DEFAULT_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
QWEN_TEMPLATE = CHAT_ML.format(
    default=DEFAULT_SYSTEM,
    image="<|vision_start|><|image_pad|><|vision_end|>",
    video="<|vision_start|><|video_pad|><|vision_end|>",
    separator="''",
)
MINICPM_TEMPLATE = CHAT_ML.format(default="", image="<|image_pad|>", video="<|video_pad|>", separator="'\\n'")
TEMPLATES = {"qwen": QWEN_TEMPLATE, "minicpmv4": MINICPM_TEMPLATE}
IMAGE_PROCESSORS = {"qwen": Qwen2VLImageProcessorPil, "minicpmv4": MiniCPMV4_6ImageProcessorPil}
IMAGE_PROCESSORS |= {"smolvlm": SmolVLMImageProcessorPil, "internvl": GotOcr2ImageProcessorPil}
IMAGE_PROCESSORS |= {"gemma3": Gemma3ImageProcessorPil}
OTHER_IMAGE_PROCESSORS = {"lfm2_vl": "Lfm2VlImageProcessor"}  # of images as tensors
NATIVE = ("qwen", "minicpmv4", "smolvlm", "internvl", "gemma3", "lfm2_vl")
PIXEL_TOLERANCE = 1e-6  # the order of additions and divisions differs
PIXEL_TOLERANCES = {"lfm2_vl": 2.001 / 255 / 0.5}  # torch and Pillow round averages of pixels twice
VIDEO_PROCESSORS = {"qwen": "Qwen2VLVideoProcessor", "minicpmv4": "MiniCPMV4_6VideoProcessor"}
MINICPM_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


class Oracle:
    """The processor of a checkpoint in transformers."""

    def __init__(self, checkpoint: Path) -> None:
        """Open the processor of a checkpoint, whose chat template becomes one of `TEMPLATES` if it takes only texts."""
        self._config = read_json(checkpoint / "config.json")
        self._model: Any = None
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        settings = read_json(checkpoint / "preprocessor_config.json")
        self._model_type = str(self._config["model_type"])
        kind = next(name for name in NATIVE if self._model_type.startswith(name))
        if template := TEMPLATES.get(kind):
            (checkpoint / "chat_template.jinja").write_text(template)
            self._tokenizer.chat_template = template
        found = IMAGE_PROCESSORS.get(kind) or processor_class(OTHER_IMAGE_PROCESSORS[kind])
        self._image_processor = found(**settings)
        self.pixel_tolerance = PIXEL_TOLERANCES.get(kind, PIXEL_TOLERANCE)
        self._video_processor = self._open_video_processor(checkpoint, settings, kind)
        creators = {"qwen": self._qwen, "minicpmv4": self._minicpm, "smolvlm": self._smolvlm}
        creators |= {"internvl": self._internvl, "gemma3": self._gemma, "lfm2_vl": self._lfm}
        self._processor = creators[kind]()
        self._count_name = "num_frames" if kind == "qwen" else "max_num_frames"
        # the processor of MiniCPM-V has no rate to sample
        self.video_kinds = VIDEO_KINDS if kind == "qwen" else VIDEO_KINDS[:-1]

    def _open_video_processor(self, checkpoint: Path, settings: Mapping[str, Any], kind: str) -> Any:
        """Return the video processor; its settings are those of images without a file of their own."""
        if kind not in VIDEO_PROCESSORS:
            return SimpleNamespace(model_input_names=[])
        found = read_optional_json(checkpoint / "video_preprocessor_config.json") or dict(settings)
        name = found.pop("video_processor_type", VIDEO_PROCESSORS[kind])
        found.pop("image_processor_type", None)
        return processor_class(name)(**found, **({"cap_pixels_per_frame": False} if kind == "qwen" else {}))

    def _qwen(self) -> Any:
        names = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
        names["qwen3_5"] = names["qwen3_vl"]
        return self._create(getattr(transformers, names[self._model_type]))

    def _minicpm(self) -> Any:
        for name, token in MINICPM_TOKENS.items():
            setattr(self._tokenizer, name, token)
            setattr(self._tokenizer, f"{name}_id", self._tokenizer.convert_tokens_to_ids(token))
        names = {"minicpmv4_6": "MiniCPMV4_6Processor", "minicpmv4_7": "MiniCPMV4_7Processor"}
        return self._create(getattr(transformers, names[self._model_type]))

    def _internvl(self) -> Any:
        tokens = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        for name, token in {**tokens, "video_token": "<video>"}.items():
            setattr(self._tokenizer, name, token)
            setattr(self._tokenizer, f"{name}_id", self._tokenizer.convert_tokens_to_ids(token))
        return self._create(transformers.InternVLProcessor, image_seq_length=self._config["image_seq_length"])

    def _lfm(self) -> Any:
        return self._create(transformers.Lfm2VlProcessor)

    def _gemma(self) -> Any:
        return self._create(transformers.Gemma3Processor, image_seq_length=self._config["mm_tokens_per_image"])

    def _smolvlm(self) -> Any:
        vars(processing_smolvlm)["num2words"] = str  # of a package that only videos need
        vision = self._config["vision_config"]
        side = vision["image_size"] // vision["patch_size"] // self._config["scale_factor"]
        return self._create(transformers.SmolVLMProcessor, image_seq_len=side**2)

    def _create(self, processor_class: Any, **sizes: int) -> Any:
        """Create a processor without checks of the types of its parts."""
        mixin: Any = transformers.ProcessorMixin
        original = mixin.__init__

        def initialize(self: Any, *_: Any, **__: Any) -> None:
            self.image_processor, self.tokenizer, self.video_processor, self.chat_template = parts

        parts = self._image_processor, self._tokenizer, self._video_processor, self._tokenizer.chat_template
        mixin.__init__ = initialize
        try:
            return processor_class(
                image_processor=self._image_processor,
                tokenizer=self._tokenizer,
                video_processor=self._video_processor,
                **sizes,
            )
        finally:
            mixin.__init__ = original

    def encode(self, turns: Sequence[Turn]) -> dict[str, NDArray[Any]]:
        """Return the arrays of the prompt before the last answer: tokens, pixels and grids."""
        messages = [{"role": turn.role, "content": [_part(part) for part in turn.content]} for turn in turns[:-1]]
        tokenizer: Any = self._tokenizer
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        videos = [video for turn in turns for video in turn.videos]
        options = video_options(videos, self._count_name) if videos else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the processor of MiniCPM-V calls numpy on tensors
            arrays = self._processor(images=_open_images(turns) or None, text=[text], return_tensors="np", **options)
        found = {name: np.asarray(value) for name, value in arrays.items() if name != "video_metadata"}
        if "pixel_attention_mask" in found and self._model_type == "lfm2_vl":  # padded to the longest possible slice
            longest = int(found["pixel_attention_mask"].sum(axis=1).max())
            found |= {name: found[name][:, :longest] for name in ("pixel_values", "pixel_attention_mask")}
        return found

    def positions(self, arguments: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
        """Return the position ids [3, length] of the torch module's arguments; None without M-RoPE."""
        if self._model_type == "minicpmv4_6" or "mm_token_type_ids" not in arguments:
            return None
        if self._model is None:
            builder: Callable[[Any], Any] = getattr(modeling_transformers, self._model_type)
            self._model = builder(self._config).model
        tensors = {name: torch.from_numpy(one) for name, one in arguments.items() if not name.startswith("pixel")}
        found: NDArray[np.int64] = self._model.get_rope_index(**tensors)[0][:, 0].numpy()
        return found


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
    pixel_tolerance = PIXEL_TOLERANCE

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


def open_oracle(checkpoint: Path, family: Family) -> Oracle | PublishedOracle:
    """Return the processor of a checkpoint with vision."""
    native = str(read_json(checkpoint / "config.json")["model_type"]).startswith(NATIVE)
    return Oracle(checkpoint) if native else PublishedOracle(checkpoint, family)


def _open_images(turns: Sequence[Turn]) -> list[Image.Image]:
    return [read_rgb(image) for turn in turns for image in turn.images if isinstance(image, Path)]


def _opened(part: Any) -> list[str | Image.Image]:
    """Return a text, an image, or the frames of a video, which the published usage samples."""
    if isinstance(part, Video):
        return list(published_frames(part))
    return [part if isinstance(part, str) else read_rgb(part)]


def _part(part: Any) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, Video) else "image"}
