"""Write a sample set as a folder with a manifest and its images, each image once."""

import json
from pathlib import Path

from mcpmq.dataset import MANIFEST, SampleSet
from mcpmq.dataset.manifest import manifest_line
from mcpmq.dataset.sample import EmbeddedImage, ImageSource, image_digest
from mcpmq.errors import DatasetError
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import atomic_dir, check_outside, lock_output, output_errors

IMAGE_FOLDER = "images"
DIGITS = 16  # of the hash in the name of an image
SIGNATURES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
}


def write_set(samples: SampleSet, out: Path) -> SampleSet:
    """Write a sample set and open it; images are named by their hashes, so that equal ones are stored once.

    Raises:
        OutputError: `out` exists and is not empty, or is inside of the set, or cannot be written.
        DatasetError: an image cannot be read.
    """
    check_outside(out, {samples.path: "sample set"})
    with lock_output(out), atomic_dir(out) as folder:
        lines = []
        for sample in samples:
            names = {image: _write_image(image, folder) for image in sample.images}
            lines.append(json.dumps(manifest_line(sample, names), ensure_ascii=False))
        with output_errors(out):
            write_durably(folder / MANIFEST, "\n".join(lines) + "\n")
    return SampleSet.open(out)


def _write_image(image: ImageSource, folder: Path) -> str:
    content = _content(image)
    name = f"{IMAGE_FOLDER}/{image_digest(EmbeddedImage('', content))[:DIGITS]}{_suffix(image, content)}"
    file = folder / name
    with output_errors(folder):
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(content)
    return name


def _content(image: ImageSource) -> bytes:
    if isinstance(image, EmbeddedImage):
        return image.content
    try:
        return image.read_bytes()
    except OSError as error:
        raise DatasetError(f"the image `{image}` cannot be read: {error}", "check the file") from error


def _suffix(image: ImageSource, content: bytes) -> str:
    """Return the suffix of the file, or that of the format of bytes without a name."""
    found = next((suffix for mark, suffix in SIGNATURES.items() if content.startswith(mark)), ".img")
    return found if isinstance(image, EmbeddedImage) else image.suffix.lower() or found
