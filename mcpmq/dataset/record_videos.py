"""Videos as records of training sets give them: files, folders of frames, and lists of frames."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from mcpmq.dataset.draft import VideoReference
from mcpmq.dataset.manifest import MAX_FPS, MAX_NUM_FRAMES
from mcpmq.dataset.media_files import FRAME_SUFFIXES
from mcpmq.dataset.record_files import file_reference, image_references
from mcpmq.errors import DatasetError

FPS_KEYS, COUNT_KEYS = ("fps", "sample_fps"), ("num_frames", "nframes")  # in parts of messages
FPS_HINT = "give the frames per second of a list of frames, or those to sample from a file"


def video_references(record: Mapping[str, Any], where: str) -> Iterator[VideoReference]:
    """Yield the videos of the keys `video` and `videos`, with `fps` for all of them or one for each.

    Raises:
        DatasetError: a value is not a video.
    """
    values = [record["video"]] if "video" in record else []
    if values and isinstance(values[0], list) and not _are_frames(values[0]):
        values = values[0]
    listed = record.get("videos", [])
    values += listed if isinstance(listed, list) else [listed]
    rates = record.get("fps")
    rates = rates if isinstance(rates, list) else [rates] * len(values)
    if len(rates) != len(values):
        raise DatasetError(f"{where}: {len(rates)} values in `fps` and {len(values)} videos", FPS_HINT)
    for value, fps in zip(values, rates, strict=True):
        yield video_reference(value, where, {} if fps is None else {"fps": fps})


def video_reference(value: Any, where: str, settings: Mapping[str, Any]) -> VideoReference:
    """Return one video, with the settings `fps` and `num_frames`, or the names of these in Qwen's messages.

    Raises:
        DatasetError: the value is not a video, or a setting is invalid.
    """
    fps, count = (next((settings[key] for key in keys if key in settings), None) for keys in (FPS_KEYS, COUNT_KEYS))
    if isinstance(fps, str) and fps.replace(".", "", 1).isdigit():  # as in Qwen's examples
        fps = float(fps)
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= MAX_FPS):
        raise DatasetError(f"{where}: `fps` is {fps!r}, not a number above 0 and up to {MAX_FPS:g}", FPS_HINT)
    if count is not None and (type(count) is not int or not 0 < count <= MAX_NUM_FRAMES):
        raise DatasetError(f"{where}: `num_frames` is {count!r}", f"give a number from 1 to {MAX_NUM_FRAMES:,}")
    if fps is not None and count is not None and not isinstance(value, list):
        raise DatasetError(f"{where}: a video file has `fps` and `num_frames`", "give one of them")
    source = tuple(image_references(value, where)) if isinstance(value, list) else file_reference(value, where, "video")
    if not source:
        raise DatasetError(f"{where}: a video has no frame", "name the image files of the frames")
    return VideoReference(source, None if fps is None else float(fps), count)


def _are_frames(values: list[Any]) -> bool:
    """Return whether all values of a list are images, not videos; a GIF is taken for a video."""
    suffixes = (PurePath(one).suffix.lower() if isinstance(one, str) else "" for one in values)
    return all(suffix in FRAME_SUFFIXES and suffix != ".gif" for suffix in suffixes)
