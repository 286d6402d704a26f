"""Processors of videos and images in transformers, with the functions of torchvision that they call."""

import sys
from collections.abc import Sequence
from enum import Enum
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import image_processing_backends, video_processing_utils

from mcpmq.families.preprocessor import BICUBIC

MODULES = {
    "Qwen2VLVideoProcessor": "qwen2_vl.video_processing_qwen2_vl",
    "Qwen3VLVideoProcessor": "qwen3_vl.video_processing_qwen3_vl",
    "MiniCPMV4_6VideoProcessor": "minicpmv4_6.video_processing_minicpmv4_6",
    "Lfm2VlImageProcessor": "lfm2_vl.image_processing_lfm2_vl",
}
PACKAGES = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
FUNCTIONAL = "torchvision.transforms.v2.functional"


class Interpolation(Enum):
    """Names of torchvision."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    LANCZOS = "lanczos"


def resize(image: Tensor, size: Sequence[int], interpolation: Interpolation, antialias: bool) -> Tensor:
    """Resize uint8 frames [..., channels, height, width], as torchvision does on CPUs."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    frames = image.reshape(-1, *image.shape[-3:])
    options: dict[str, Any] = {"align_corners": False, "antialias": antialias}
    found = torch.nn.functional.interpolate(frames, list(size), mode=interpolation.value, **options)
    return found.reshape(*image.shape[:-2], *size)


def normalize(image: Tensor, mean: Tensor, std: Tensor, inplace: bool = False) -> Tensor:
    """Normalize frames [..., channels, height, width]."""
    return image.sub(torch.as_tensor(mean).view(-1, 1, 1)).div(torch.as_tensor(std).view(-1, 1, 1))


@cache
def _functional() -> ModuleType:
    """Return a module with the functions, and give it to the base class of the processors."""
    module: Any = ModuleType(FUNCTIONAL)
    module.InterpolationMode, module.resize, module.normalize = Interpolation, resize, normalize
    module.grayscale_to_rgb = lambda video: video
    users: list[Any] = [image_processing_backends, video_processing_utils]
    for user in users:
        user.tvF = module
    users[0].pil_torch_interpolation_mapping = {
        BICUBIC: Interpolation.BICUBIC,
        int(Image.Resampling.BILINEAR): Interpolation.BILINEAR,
    }
    found: ModuleType = module
    return found


@cache
def processor_class(name: str) -> Any:
    """Import a processor of videos or images of transformers, also without torchvision."""
    functional = _functional()
    packages: list[Any] = [ModuleType(package) for package in PACKAGES]
    for package, inner in zip(packages, [*packages[1:], functional], strict=True):
        setattr(package, inner.__name__.rpartition(".")[2], inner)
    added = dict(zip((*PACKAGES, FUNCTIONAL), [*packages, functional], strict=True))
    missing = {key: value for key, value in added.items() if key not in sys.modules}
    sys.modules.update(missing)
    try:
        return getattr(import_module(f"transformers.models.{MODULES[name]}"), name)
    finally:
        for key in missing:
            del sys.modules[key]
