"""Tokens, pixels and positions of conversations from the processors and models of transformers."""

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
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil, ensure_divide
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mcpmq.dataset import Turn
from mcpmq.families import modeling_transformers
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.family import Family
from mcpmq.system.json_file import read_json

# Chat templates that accept texts, and lists of parts as the published ones do.
CHAT_ML = (
    "{{% for message in messages %}}{default}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% if not loop.last %}}{{{{ {separator} }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
DEFAULT_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
QWEN_TEMPLATE = CHAT_ML.format(
    default=DEFAULT_SYSTEM, image="<|vision_start|><|image_pad|><|vision_end|>", separator="''"
)
MINICPM_TEMPLATE = CHAT_ML.format(default="", image="<|image_pad|>", separator="'\\n'")
TEMPLATES = {"qwen": QWEN_TEMPLATE, "minicpmv4": MINICPM_TEMPLATE}
IMAGE_PROCESSORS = {"qwen": Qwen2VLImageProcessorPil, "minicpmv4": MiniCPMV4_6ImageProcessorPil}
IMAGE_PROCESSORS["smolvlm"] = SmolVLMImageProcessorPil
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
    """The processor of a checkpoint in transformers, without its video processor, which needs another library."""

    def __init__(self, checkpoint: Path) -> None:
        """Open the processor of a checkpoint, whose chat template becomes one of `TEMPLATES` if it takes only texts."""
        self._config = read_json(checkpoint / "config.json")
        self._model: Any = None
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        settings = read_json(checkpoint / "preprocessor_config.json")
        self._model_type = str(self._config["model_type"])
        kind = next(name for name in IMAGE_PROCESSORS if self._model_type.startswith(name))
        if template := TEMPLATES.get(kind):
            (checkpoint / "chat_template.jinja").write_text(template)
            self._tokenizer.chat_template = template
        self._image_processor = IMAGE_PROCESSORS[kind](**settings)
        self._processor = {"qwen": self._qwen, "minicpmv4": self._minicpm, "smolvlm": self._smolvlm}[kind]()

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

    def _smolvlm(self) -> Any:
        vars(processing_smolvlm)["num2words"] = str  # of a package that only videos need
        vision = self._config["vision_config"]
        side = vision["image_size"] // vision["patch_size"] // self._config["scale_factor"]
        return self._create(transformers.SmolVLMProcessor, image_seq_len=side**2)

    def _create(self, processor_class: Any, **sizes: int) -> Any:
        """Create a processor whose video processor is a record of settings."""
        mixin: Any = transformers.ProcessorMixin
        original = mixin.__init__
        settings = SimpleNamespace(slice_mode=True, downsample_mode="16x", merge_size=2, model_input_names=[])

        def initialize(self: Any, *_: Any, **__: Any) -> None:
            self.image_processor, self.tokenizer, self.video_processor, self.chat_template = parts

        parts = self._image_processor, self._tokenizer, settings, self._tokenizer.chat_template
        mixin.__init__ = initialize
        try:
            return processor_class(
                image_processor=self._image_processor, tokenizer=self._tokenizer, video_processor=settings, **sizes
            )
        finally:
            mixin.__init__ = original

    def encode(self, turns: Sequence[Turn]) -> dict[str, NDArray[Any]]:
        """Return the arrays of the prompt before the last answer: tokens, pixels and grids."""
        messages = [{"role": turn.role, "content": [_part(part) for part in turn.content]} for turn in turns[:-1]]
        tokenizer: Any = self._tokenizer
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        arrays = self._processor(images=_open_images(turns) or None, text=[text], return_tensors="np")
        return {name: np.asarray(value) for name, value in arrays.items()}

    def positions(self, arguments: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
        """Return the position ids [3, length] of the torch module's arguments; None without M-RoPE."""
        if self._model_type == "minicpmv4_6" or "mm_token_type_ids" not in arguments:
            return None
        if self._model is None:
            builder: Callable[[Any], Any] = getattr(modeling_transformers, self._model_type)
            self._model = builder(self._config).model
        tensors = {name: torch.from_numpy(value) for name, value in arguments.items() if name != "pixel_values"}
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
        contents = ["\n".join(part if isinstance(part, str) else self.TAG for part in turn.content) for turn in turns]
        messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, contents, strict=True)]
        text, images = self._template.render(messages[:-1]), _open_images(turns)
        arrays = dict(self._image_processor(images=images, return_tensors="np")) if images else {}
        for number in range(len(images)):
            text = text.replace(self.TAG, self._placeholder(number, list(arrays["grids"][number])), 1)
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        return {"input_ids": np.array([tokens]), **arrays}

    def _placeholder(self, number: int, grid: Sequence[int]) -> str:
        queries = self._format.image_token * self._config["query_num"]
        rows, columns = grid
        if self._format.image_tags_for_slices:
            lines = "\n".join([f"<image>{queries}</image>" * columns] * rows)
            return f"<image>{queries}</image>" + (f"<slice>{lines}</slice>" if rows else "")
        lines = "\n".join([f"<slice>{queries}</slice>" * columns] * rows)
        return f"<image_id>{number}</image_id><image>{queries}</image>{lines}"

    def positions(self, _: Mapping[str, NDArray[Any]]) -> None:
        """Return None: the positions are consecutive."""


def open_oracle(checkpoint: Path, family: Family) -> Oracle | PublishedOracle:
    """Return the processor of a checkpoint with vision."""
    native = str(read_json(checkpoint / "config.json")["model_type"]).startswith(("qwen", "minicpmv4_", "smolvlm"))
    return Oracle(checkpoint) if native else PublishedOracle(checkpoint, family)


def _open_images(turns: Sequence[Turn]) -> list[Image.Image]:
    return [Image.open(image).convert("RGB") for turn in turns for image in turn.images if isinstance(image, Path)]


def _part(part: Any) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
