"""Steps of the image processor of ONNX Runtime GenAI, with the settings of the checkpoint."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from PIL import Image

from mcpmq.families.gemma_inputs import GemmaResizing
from mcpmq.families.lfm_inputs import LfmTiling
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.families.qwenvl_resizing import Resizing

Step = dict[str, Any]
FILTERS: Mapping[int, str] = MappingProxyType(
    {
        int(Image.Resampling.NEAREST): "NEAREST",
        int(Image.Resampling.LANCZOS): "LANCZOS",
        int(Image.Resampling.BILINEAR): "LINEAR",
        int(Image.Resampling.BICUBIC): "CUBIC",
    }
)


def processor_config(settings: PreprocessorConfig) -> dict[str, Any]:
    """Return the configuration: decoding, resizing and normalization, then the arrangement of the pixels."""
    means, stds = settings.enabled_mean_and_std
    steps = [
        _step("DecodeImage", color_space="RGB"),
        _step("Resize", interpolation=FILTERS[settings.resample], **_size(settings)),
        _step("Rescale", rescale_factor=float(settings.scale)),
        _step("Normalize", mean=[float(mean) for mean in means], std=[float(std) for std in stds]),
        *_arrangement(settings),
    ]
    return {"processor": {"name": "image_processor", "transforms": steps}}


def _size(settings: PreprocessorConfig) -> dict[str, int]:
    if isinstance(settings, Resizing):
        bounds = settings.size.shortest_edge, settings.size.longest_edge
        return _smart_size(bounds, settings.patch_size, settings.merge_size)
    if isinstance(settings, LfmTiling):
        least, most = settings.min_image_tokens, settings.max_image_tokens
        bounds = least * settings.token_side**2, most * settings.token_side**2
        return _smart_size(bounds, settings.encoder_patch_size, settings.downsample_factor)
    assert isinstance(settings, GemmaResizing)
    return {"height": settings.size.height, "width": settings.size.width, "keep_aspect_ratio": 0}


def _smart_size(bounds: tuple[int, int], patch_size: int, merge_size: int) -> dict[str, int]:
    """Return the settings of sides in multiples of a token, with an area within the bounds."""
    sides = {"patch_size": patch_size, "merge_size": merge_size}
    return {"smart_resize": 1, "min_pixels": bounds[0], "max_pixels": bounds[1], **sides}


def _arrangement(settings: PreprocessorConfig) -> list[Step]:
    if isinstance(settings, Resizing):
        names = "patch_size", "merge_size", "temporal_patch_size"
        return [_step("PatchImage", **{name: getattr(settings, name) for name in names})]
    channels_first = _step("Permute3D", dims=[2, 0, 1])
    return [channels_first, _step("PixtralImageSizes")] if isinstance(settings, LfmTiling) else [channels_first]


def _step(operator: str, **attributes: Any) -> Step:
    return {"operation": {"name": operator, "type": operator, **({"attrs": attributes} if attributes else {})}}
