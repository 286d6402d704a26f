"""Settings of the image processor of a checkpoint: read from the file that transformers reads, applied or rejected."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from annotated_types import MaxLen, MinLen
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from mcpmq.compression_tables import ImagesTable
from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.system.json_file import read_json, read_optional_json

PREPROCESSOR_CONFIG, PROCESSOR_CONFIG = "preprocessor_config.json", "processor_config.json"
VIDEO_PREPROCESSOR_CONFIG = "video_preprocessor_config.json"
NESTED_KEY, NESTED_VIDEO_KEY = "image_processor", "video_processor"  # of processor_config.json, from transformers 5
RESCALE_FACTOR = 1 / 255
BICUBIC = int(Image.Resampling.BICUBIC)
# Steps of image processors in transformers; other steps that a file enables are not supported.
KNOWN_STEPS = frozenset({"do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_sample_frames"})
# Null means the default of other keys; for these, the step is off or fails in transformers.
NOT_NULL = ("do_resize", "do_rescale", "do_normalize", "resample", "rescale_factor", "patch_size", "merge_size")
STATISTICS = ("image_mean", "image_std", "norm_mean", "norm_std")


def _three_channels(value: object) -> object:
    return (value,) * 3 if isinstance(value, int | float) else value


# Red, green, blue; a single number is for all three.
ChannelMeans = Annotated[tuple[float, ...], BeforeValidator(_three_channels), MinLen(3), MaxLen(3)]
ChannelStds = Annotated[tuple[PositiveFloat, ...], BeforeValidator(_three_channels), MinLen(3), MaxLen(3)]


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of the image processor that are not null, and the name of their file.

    As in transformers, `image_processor` of processor_config.json takes precedence over preprocessor_config.json.

    Raises:
        CheckpointError: neither file has the settings, or one is invalid.
    """
    nested, file = read_optional_json(folder / PROCESSOR_CONFIG).get(NESTED_KEY), PROCESSOR_CONFIG
    if nested is None:
        hint = f"download it, or `{PROCESSOR_CONFIG}` with the key `{NESTED_KEY}`"
        nested, file = read_json(folder / PREPROCESSOR_CONFIG, hint), PREPROCESSOR_CONFIG
    return _checked(nested, f"`{NESTED_KEY}` of `{file}`", file), file


def read_video_preprocessor(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of the video processor that are not null, and the name of their file.

    As in transformers, they are `video_processor` of processor_config.json, else video_preprocessor_config.json, else
    preprocessor_config.json.

    Raises:
        CheckpointError: no file has the settings, or one is invalid.
    """
    nested, file = read_optional_json(folder / PROCESSOR_CONFIG).get(NESTED_VIDEO_KEY), PROCESSOR_CONFIG
    if nested is None:
        nested, file = read_optional_json(folder / VIDEO_PREPROCESSOR_CONFIG) or None, VIDEO_PREPROCESSOR_CONFIG
    if nested is None:
        hint = f"download `{VIDEO_PREPROCESSOR_CONFIG}`, or `{PROCESSOR_CONFIG}` with the key `{NESTED_VIDEO_KEY}`"
        nested, file = read_json(folder / PREPROCESSOR_CONFIG, hint), PREPROCESSOR_CONFIG
    return _checked(nested, f"`{NESTED_VIDEO_KEY}` of `{file}`", file), file


def _checked(settings: Any, name: str, file: str) -> dict[str, Any]:
    """Return the settings that are not null."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{name} is not an object", "compare it with the published file")
    if undefined := [key for key in (*NOT_NULL, *STATISTICS) if key in settings and settings[key] is None]:
        message = f"`{file}`: {undefined[0]} is null, which versions of transformers read differently"
        raise CheckpointError(message, "remove the key for its default value, or write a value")
    return {key: value for key, value in settings.items() if value is not None}


def has_preprocessor(folder: Path) -> bool:
    """Return whether one of the files has settings of the image processor."""
    nested = read_optional_json(folder / PROCESSOR_CONFIG).get(NESTED_KEY)
    return nested is not None or (folder / PREPROCESSOR_CONFIG).is_file()


class PreprocessorConfig(ConfigSchema):
    """Settings that all families have; defaults are those of transformers."""

    known_steps: ClassVar[frozenset[str]] = KNOWN_STEPS
    limit_names: ClassVar[frozenset[str]] = frozenset()  # keys of [images] in a recipe that apply
    patch_size: PositiveInt = Field(default=14, le=256)
    do_resize: Literal[True] = True
    do_convert_rgb: Literal[True] = True
    resample: int = Field(default=BICUBIC, ge=0, le=5)  # as in Pillow
    do_rescale: bool = True
    rescale_factor: PositiveFloat = RESCALE_FACTOR
    do_normalize: bool = True

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the settings of a checkpoint or an artifact.

        Raises:
            CheckpointError: no file has them, or they are invalid or not supported.
        """
        return validate_config(cls, *read_preprocessor(folder))

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_steps(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping):
            for key, value in settings.items():
                if key.startswith("do_") and key not in cls.known_steps and value:
                    raise ValueError(f"`{key}` is enabled, which is not supported")
        return settings

    def limit_settings(self, limits: ImagesTable) -> dict[str, Any]:
        """Return the keys of the file for limits, which are all in `limit_names`."""
        return dict(limits.given)

    @property
    def slice_resolution(self) -> int:
        """Return the side of a square with the area of a slice, in pixels; 0 for a family without slices."""
        return 0

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the means and standard deviations of the channels of rescaled pixels."""
        return (0.0,) * 3, (1.0,) * 3

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the means and standard deviations with which pixels in [0, 1] give the same values."""
        means, stds = self.enabled_mean_and_std
        unit = self.scale * 255
        return tuple(mean / unit for mean in means), tuple(std / unit for std in stds)

    @property
    def scale(self) -> float:
        """Return the factor of pixel values before normalization."""
        return self.rescale_factor if self.do_rescale else 1.0

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rescale and normalize RGB pixels [..., height, width, 3]."""
        mean, std = (np.array(values, np.float32) for values in self.enabled_mean_and_std)
        normalized: NDArray[np.float32] = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return normalized

    def resize_image(self, image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
        """Resize an RGB image with the filter of the settings: uint8 [height, width, 3]."""
        return np.asarray(image.resize((width, height), Image.Resampling(self.resample)))

    @property
    def enabled_mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `mean_and_std`, or those without an effect if `do_normalize` is off."""
        return self.mean_and_std if self.do_normalize else ((0.0,) * 3, (1.0,) * 3)


def image_settings(opened: object) -> PreprocessorConfig:
    """Return the settings of images among the opened settings of a family."""
    settings = getattr(opened, "images", opened)  # beside those of the audio encoder
    assert isinstance(settings, PreprocessorConfig)
    return settings


def check_consistent(name: str, config: object, preprocessor: object) -> None:
    """Check that two files have the same value of a key.

    Raises:
        CheckpointError: the values differ.
    """
    if config != preprocessor:
        raise CheckpointError(
            f"`{name}` is {config} in config.json but {preprocessor} for the image processor",
            "compare both files with the published files",
        )
