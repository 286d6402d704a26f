"""Checks of the image, video and audio files that a dataset names."""

import re
from pathlib import Path

from mcpmq.dataset.sample import image_digest
from mcpmq.errors import DatasetError
from mcpmq.system.hub_cache import is_inside

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".avif")


def checked_image(folder: Path, name: str, where: str, sha256: str | None = None) -> Path:
    """Return the file of an image that a dataset in `folder` names, after decoding it once.

    Raises:
        DatasetError: the file is missing, is outside of the folder, is not an image, or has another hash; the error
            has `where`.
    """
    from mcpmq.system.image_file import read_image

    path = _checked_file(folder, name, where, "image", sha256)
    read_image(path, where)
    return path


def checked_video(folder: Path, name: str, where: str, sha256: str | None = None) -> Path:
    """Return the file of a video that a dataset in `folder` names, after decoding all frames once.

    Raises:
        DatasetError: as `checked_image`, for a video.
    """
    from mcpmq.system.video_file import video_info

    path = _checked_file(folder, name, where, "video", sha256)
    video_info(path, f"{where}: the video `{path.name}`")
    return path


def checked_audio(folder: Path, name: str, where: str, sha256: str | None = None) -> Path:
    """Return the file of an audio that a dataset in `folder` names, after decoding it once.

    Raises:
        DatasetError: as `checked_image`, for an audio.
    """
    from mcpmq.system.audio_file import read_audio

    path = _checked_file(folder, name, where, "audio", sha256)
    read_audio(path, where)
    return path


def frame_names(folder: Path, name: str, where: str) -> list[str]:
    """Return the paths of the images in a folder of frames, by the numbers in their names; [] for another path.

    Raises:
        DatasetError: the folder has no image; the error has `where`.
    """
    try:
        path = folder / name
        if not path.is_dir():
            return []
        found = [file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES]
    except (OSError, ValueError, RuntimeError) as error:
        raise DatasetError(f"{where}: `video` is not a valid path: {error}", "name a file in the folder") from error
    if not found:
        raise DatasetError(f"{where}: the folder `{name}` has no image", "put the frames of the video into it")
    return [f"{name}/{file.name}" for file in sorted(found, key=_numbers)]


def _numbers(file: Path) -> list[tuple[int, str]]:
    """Return a sort key by which frame 10 follows frame 9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", file.name)]


def _checked_file(folder: Path, name: str, where: str, kind: str, sha256: str | None) -> Path:
    path = folder / name
    try:
        if not is_inside(path, folder):
            raise DatasetError(f"{where}: the {kind} `{name}` is outside of the folder", "copy it into the folder")
        if not path.is_file():
            state = "is not a regular file" if path.exists() else "is missing"
            raise DatasetError(f"{where}: the {kind} `{name}` {state}", "paths are relative to the folder of the set")
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long or has a null, a loop of links
        raise DatasetError(f"{where}: `{kind}` is not a valid path: {error}", "name a file in the folder") from error
    if sha256 and image_digest(path) != sha256.lower():
        raise DatasetError(
            f"{where}: the {kind} `{name}` differs from its SHA-256",
            f"restore the {kind}, or compute its hash again with `sha256sum`",
        )
    return path
