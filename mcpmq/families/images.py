"""Load the images of a sample."""

from PIL import Image

from mcpmq.dataset import EmbeddedImage, ImageSource
from mcpmq.system.image_file import decode_image, read_image


def open_image(sample_id: str, image: ImageSource) -> Image.Image:
    """Load an image as 8-bit sRGB, as image viewers show it.

    Raises:
        DatasetError: as `read_image`; the error names the sample.
    """
    label = f"sample `{sample_id}`"
    if isinstance(image, EmbeddedImage):
        return decode_image(image.content, f"{label}: the image `{image.name}`")
    return read_image(image, label)
