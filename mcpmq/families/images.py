"""Load the images of a dataset, with limits."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mcpmq.errors import DatasetError

MAX_ASPECT_RATIO = 200  # slicing enlarges a narrow image to the area of a slice, which makes it very long


def open_image(sample_id: str, path: Path) -> Image.Image:
    """Load an image file as RGB.

    Raises:
        DatasetError: the file is not a valid image, or its aspect ratio exceeds `MAX_ASPECT_RATIO`.
    """
    try:
        with Image.open(path) as image:
            _check_aspect_ratio(sample_id, image)
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"sample `{sample_id}`: the image `{path.name}` cannot be read: {error}") from error


def _check_aspect_ratio(sample_id: str, image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        raise DatasetError(
            f"sample `{sample_id}`: the {image.width}x{image.height} image exceeds the aspect ratio {MAX_ASPECT_RATIO}",
            "crop the image",
        )
