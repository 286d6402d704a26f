"""Load the image of a sample."""

from pathlib import Path

from PIL import Image

from mcpmq.system.image_file import read_image


def open_image(sample_id: str, path: Path) -> Image.Image:
    """Load an image file as 8-bit sRGB, as image viewers show it.

    Raises:
        DatasetError: as `read_image`; the error names the sample.
    """
    return read_image(path, f"sample `{sample_id}`")
