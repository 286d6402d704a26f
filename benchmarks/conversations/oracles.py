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
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.conversations.draw import VIDEO_KINDS
from benchmarks.conversations.published_oracle import PIXEL_TOLERANCE, PublishedOracle
from benchmarks.conversations.video_inputs import read_rgb, video_options
from benchmarks.conversations.video_processors import processor_class
from mcpmq.dataset import Audio, Turn, Video
from mcpmq.families import modeling_transformers
from mcpmq.families.family import Family
from mcpmq.system.audio_file import read_audio
from mcpmq.system.json_file import read_json, read_optional_json

# Chat templates that accept texts, and lists of parts as the published ones do.
CHAT_ML = (
    "{{% for message in messages %}}{default}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% elif part['type'] == 'video' %}}{video}{{% elif part['type'] == 'audio' %}}{audio}"
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
    audio="",
    separator="''",
)
OMNI_TEMPLATE = CHAT_ML.format(
    default=DEFAULT_SYSTEM,
    image="<|vision_bos|><|IMAGE|><|vision_eos|>",
    video="<|vision_bos|><|VIDEO|><|vision_eos|>",
    audio="<|audio_bos|><|AUDIO|><|audio_eos|>",
    separator="''",
)
MINICPM_TEMPLATE = CHAT_ML.format(default="", image="<|image_pad|>", video="<|video_pad|>", audio="", separator="'\\n'")
TEMPLATES = {"qwen2_5_omni": OMNI_TEMPLATE, "qwen": QWEN_TEMPLATE, "minicpmv4": MINICPM_TEMPLATE}
IMAGE_PROCESSORS = {"qwen": Qwen2VLImageProcessorPil, "minicpmv4": MiniCPMV4_6ImageProcessorPil}
IMAGE_PROCESSORS |= {"smolvlm": SmolVLMImageProcessorPil, "internvl": GotOcr2ImageProcessorPil}
IMAGE_PROCESSORS |= {"gemma3": Gemma3ImageProcessorPil, "qwen2_5_omni": Qwen2VLImageProcessorPil}
OTHER_IMAGE_PROCESSORS = {"lfm2_vl": "Lfm2VlImageProcessor"}  # of images as tensors
NATIVE = ("qwen2_5_omni", "qwen", "minicpmv4", "smolvlm", "internvl", "gemma3", "lfm2_vl")
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
        self.pixel_tolerance, self.has_audio = PIXEL_TOLERANCES.get(kind, PIXEL_TOLERANCE), kind == "qwen2_5_omni"
        self._video_processor = self._open_video_processor(checkpoint, settings, kind)
        creators = {"qwen": self._qwen, "minicpmv4": self._minicpm, "smolvlm": self._smolvlm}
        creators |= {"internvl": self._internvl, "gemma3": self._gemma, "lfm2_vl": self._lfm}
        creators |= {"qwen2_5_omni": self._omni}
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
        names |= dict.fromkeys(("qwen3_5", "qwen3_vl_moe", "qwen3_5_moe"), names["qwen3_vl"])
        return self._create(getattr(transformers, names[self._model_type]))

    def _omni(self) -> Any:
        names = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO"}
        names |= {name: name for name in ("vision_bos", "vision_eos", "audio_bos", "audio_eos")}
        for name, text in names.items():
            setattr(self._tokenizer, f"{name}_token", f"<|{text}|>")
            setattr(self._tokenizer, f"{name}_token_id", self._tokenizer.convert_tokens_to_ids(f"<|{text}|>"))
        processor = self._create(transformers.Qwen2_5OmniProcessor)
        mel_bins = self._config["thinker_config"]["audio_config"]["num_mel_bins"]
        processor.feature_extractor = transformers.WhisperFeatureExtractor(mel_bins, return_attention_mask=True)
        return processor

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
        if audio := [one.source for turn in turns for one in turn.audio if isinstance(one.source, Path)]:
            options["audio"] = [read_audio(file, str(file)).samples for file in audio]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the processor of MiniCPM-V calls numpy on tensors
            arrays = self._processor(images=_open_images(turns) or None, text=[text], return_tensors="np", **options)
        found = {name: np.asarray(value) for name, value in arrays.items() if name != "video_metadata"}
        if "pixel_attention_mask" in found and self._model_type == "lfm2_vl":  # padded to the longest possible slice
            longest = int(found["pixel_attention_mask"].sum(axis=1).max())
            found |= {name: found[name][:, :longest] for name in ("pixel_values", "pixel_attention_mask")}
        return _without_padding(found) if "input_features" in found else found

    def positions(self, arguments: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
        """Return the position ids [3, length] of the torch module's arguments; None without M-RoPE."""
        if not self.has_audio and (self._model_type == "minicpmv4_6" or "mm_token_type_ids" not in arguments):
            return None
        if self._model is None:
            builder: Callable[[Any], Any] = getattr(modeling_transformers, self._model_type)
            model = builder(self._config)
            self._model = model if self.has_audio else model.model
        left_out = ("pixel", "input_features", "feature_attention_mask")
        tensors = {name: torch.from_numpy(one) for name, one in arguments.items() if not name.startswith(left_out)}
        if "feature_attention_mask" in arguments:
            tensors["audio_seqlens"] = torch.from_numpy(arguments["feature_attention_mask"]).sum(1)
        found: NDArray[np.int64] = self._model.get_rope_index(**tensors)[0][:, 0].numpy()
        return found


def open_oracle(checkpoint: Path, family: Family) -> Oracle | PublishedOracle:
    """Return the processor of a checkpoint with vision."""
    native = str(read_json(checkpoint / "config.json")["model_type"]).startswith(NATIVE)
    return Oracle(checkpoint) if native else PublishedOracle(checkpoint, family)


def _without_padding(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays whose spectrograms have the frames of the longest audio, and zeros behind the others."""
    mask = arrays["feature_attention_mask"]
    frames = int(mask.sum(axis=1).max())
    features = arrays["input_features"][..., :frames] * mask[:, None, :frames]
    return arrays | {"feature_attention_mask": mask[:, :frames], "input_features": features}


def _open_images(turns: Sequence[Turn]) -> list[Image.Image]:
    return [read_rgb(image) for turn in turns for image in turn.images if isinstance(image, Path)]


def _part(part: Any) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kinds = {Video: "video", Audio: "audio"}
    return {"type": kinds.get(type(part), "image")}
