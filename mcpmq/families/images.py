"""Images as they come from a calibration set: opened, bounded, in RGB."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mcpmq.errors import CalibrationError

LARGEST_ASPECT = 200  # a sliver would be enlarged to a slice of any length


def open_image(sample_id: str, path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            _refuse_sliver(sample_id, image)
            return image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CalibrationError(f"sample `{sample_id}`: the image `{path.name}` cannot be read: {error}") from error


def _refuse_sliver(sample_id: str, image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if longer > LARGEST_ASPECT * shorter:
        raise CalibrationError(
            f"sample `{sample_id}`: the image is {image.width}x{image.height}, too long to be sliced",
            f"crop it: the longer side may be {LARGEST_ASPECT} times the shorter",
        )
