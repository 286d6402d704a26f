"""Tokens of images and bytes of their KV cache, from the settings of the image processor."""

from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.image_limits import ImageLimits, ImageTokens
from mcpmq.families.preprocessor import has_preprocessor
from mcpmq.formats.kv_cache import F16_CACHE, cached_per_token

IMAGE_SIZES = ((448, 448), (1920, 1080), (3024, 4032))  # width and height in pixels: a tile, a screen, a photo


def image_limits(checkpoint: Checkpoint) -> ImageLimits | None:
    """Return the record of the image limits of a checkpoint; None if they are those of its files on disk."""
    return ImageLimits(limits=checkpoint.images, images=image_tokens(checkpoint)) if checkpoint.images else None


def image_tokens(checkpoint: Checkpoint) -> tuple[ImageTokens, ...]:
    """Return the tokens of images of typical sizes; none for a model without settings of an image processor.

    Raises:
        CheckpointError: the settings are invalid.
    """
    vision, source = checkpoint.architecture.vision, checkpoint.source
    in_config = checkpoint.family.prompt_format.slicing == "configured"
    if vision is None or not (in_config or has_preprocessor(checkpoint.path)):
        return ()
    now, before = (one.family.open_vision_inputs(one.path) for one in (checkpoint, source))
    per_token = F16_CACHE.nbytes(cached_per_token(checkpoint.architecture.language))
    return tuple(
        ImageTokens(
            width=width,
            height=height,
            tokens=(tokens := now.image_tokens(width, height, vision.num_queries)),
            original_tokens=before.image_tokens(width, height, vision.num_queries),
            kv_cache_nbytes=tokens * per_token,
        )
        for width, height in IMAGE_SIZES
    )
