"""Write a sample set as a folder with a manifest, its images, videos and audio, each file once."""

import json
from collections.abc import Mapping
from pathlib import Path

from mcpmq.dataset import MANIFEST, SampleSet
from mcpmq.dataset.manifest import manifest_line
from mcpmq.dataset.sample import EmbeddedImage, ImageSource, image_digest
from mcpmq.errors import DatasetError
from mcpmq.system.durable_file import write_durably
from mcpmq.system.output import atomic_dir, check_outside, lock_output, output_errors

IMAGE_FOLDER, AUDIO_FOLDER = "images", "audio"
DIGITS = 16  # of the hash in the name of a file
SIGNATURES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
}
AUDIO_SIGNATURES = {b"RIFF": ".wav", b"fLaC": ".flac"}


def write_set(samples: SampleSet, out: Path) -> SampleSet:
    """Write a sample set and open it; files are named by their hashes, so that equal ones are stored once.

    Raises:
        OutputError: `out` exists and is not empty, or is inside of the set, or cannot be written.
        DatasetError: a file cannot be read.
    """
    check_outside(out, {samples.path: "sample set"})
    with lock_output(out), atomic_dir(out) as folder:
        lines = []
        for sample in samples:
            audio = {one.source for one in sample.audio}
            names = {
                file: _write_file(file, folder / AUDIO_FOLDER, AUDIO_SIGNATURES)
                if file in audio
                else _write_file(file, folder / IMAGE_FOLDER, SIGNATURES)
                for file in sample.files
            }
            lines.append(json.dumps(manifest_line(sample, names), ensure_ascii=False))
        with output_errors(out):
            write_durably(folder / MANIFEST, "\n".join(lines) + "\n")
    return SampleSet.open(out)


def _write_file(source: ImageSource, folder: Path, signatures: Mapping[bytes, str]) -> str:
    """Write a file into a folder; return its path relative to the parent of the folder."""
    content = _content(source)
    file = folder / f"{image_digest(EmbeddedImage('', content))[:DIGITS]}{_suffix(source, content, signatures)}"
    with output_errors(folder.parent):
        folder.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(content)
    return f"{folder.name}/{file.name}"


def _content(source: ImageSource) -> bytes:
    if isinstance(source, EmbeddedImage):
        return source.content
    try:
        return source.read_bytes()
    except OSError as error:
        raise DatasetError(f"`{source}` cannot be read: {error}", "check the file") from error


def _suffix(source: ImageSource, content: bytes, signatures: Mapping[bytes, str]) -> str:
    """Return the suffix of the file, or that of the format of bytes without a name."""
    found = next((suffix for mark, suffix in signatures.items() if content.startswith(mark)), ".img")
    return found if isinstance(source, EmbeddedImage) else source.suffix.lower() or found
