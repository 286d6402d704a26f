"""Load the images and the audio of a sample."""

from PIL import Image

from mcpmq.dataset import Audio, EmbeddedImage, ImageSource
from mcpmq.system.audio_file import Waveform, decode_audio, read_audio
from mcpmq.system.image_file import decode_image, read_image


def open_image(sample_id: str, image: ImageSource) -> Image.Image:
    """Load an image as 8-bit sRGB, as image viewers show it.

    Raises:
        DatasetError: as `read_image`; the error names the sample.
    """
    return read_source(f"sample `{sample_id}`", image)


def read_source(label: str, image: ImageSource) -> Image.Image:
    """Load an image as `open_image`; `label` names its owner in errors."""
    if isinstance(image, EmbeddedImage):
        return decode_image(image.content, f"{label}: the image `{image.name}`")
    return read_image(image, label)


def open_audio(sample_id: str, audio: Audio) -> Waveform:
    """Load an audio as mono samples at 16 kHz.

    Raises:
        DatasetError: as `read_audio`; the error names the sample.
    """
    label, source = f"sample `{sample_id}`", audio.source
    if isinstance(source, EmbeddedImage):
        return decode_audio(source.content, f"{label}: the audio `{source.name}`")
    return read_audio(source, label)
