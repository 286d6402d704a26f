"""Counts and lengths of a sample set."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from mcpmq.dataset import SampleSet
from mcpmq.dataset.sample import Audio, EmbeddedImage, Video
from mcpmq.system.audio_file import SAMPLING_RATE, StoredAudio, stored_audio
from mcpmq.system.image_file import stored_size
from mcpmq.system.video_file import video_info

MAX_LISTED = 10


def set_statistics(samples: SampleSet) -> dict[str, Any]:
    """Return counts of samples, turns, images and videos, lengths of texts, and sizes of images, as JSON values."""
    images = [len(sample.images) for sample in samples]
    sizes = [
        stored_size(image.content if isinstance(image, EmbeddedImage) else image)
        for sample in samples
        for image in sample.images
    ]
    videos = [video for sample in samples for video in sample.videos]
    properties: dict[str, Any] = {
        "samples": len(samples),
        **({"records": samples.num_records} if samples.num_records not in (0, len(samples)) else {}),
        **listed("invalid_records", samples.invalid),
        **listed("duplicates", [f"{sample_id} of {first}" for sample_id, first in samples.duplicates]),
        "with_image": sum(count > 0 for count in images),
        "with_several_images": sum(count > 1 for count in images),
        **({"with_video": sum(bool(sample.videos) for sample in samples)} if videos else {}),
        **({"with_audio": count} if (count := sum(bool(sample.audio) for sample in samples)) else {}),
        "with_system_prompt": sum(sample.turns[0].role == "system" for sample in samples),
        "answers": sum(turn.role == "assistant" for sample in samples for turn in sample.turns),
        "characters_of_prompts": spread(len(sample.prompt) for sample in samples),
        "characters_of_answers": spread(
            len(turn.text) for sample in samples for turn in sample.turns if turn.role == "assistant"
        ),
    }
    if sizes:
        properties |= {"images": len(sizes), "image_width": spread(width for width, _ in sizes)}
        properties |= {"image_height": spread(height for _, height in sizes)}
    if videos:
        properties |= {"videos": len(videos), "frames_of_videos": spread(map(_num_frames, videos))}
    properties |= _audio_statistics([audio for sample in samples for audio in sample.audio])
    tags = dict(Counter(tag for sample in samples for tag in sample.tags))
    return {**properties, "tags": tags, "sha256": samples.sha256}


def _audio_statistics(audios: Sequence[Audio]) -> dict[str, Any]:
    """Return the number of audios, their durations, and the number of those that are converted to mono at 16 kHz."""
    if not audios:
        return {}
    stored = list(map(_stored, audios))
    return {
        "audios": len(stored),
        "audio_seconds": spread(round(one.seconds) for one in stored),
        "audios_mixed_to_mono": sum(one.channels > 1 for one in stored),
        "audios_resampled_to_16_khz": sum(one.rate != SAMPLING_RATE for one in stored),
    }


def _stored(audio: Audio) -> StoredAudio:
    return stored_audio(audio.source.content if isinstance(audio.source, EmbeddedImage) else audio.source)


def _num_frames(video: Video) -> int:
    if isinstance(video.source, tuple):
        return len(video.source)
    file = video.source.content if isinstance(video.source, EmbeddedImage) else video.source
    return video_info(file, f"the video `{video.source.name}`").num_frames


def listed(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the number of texts and the first of them; nothing without texts."""
    return {name: len(texts), f"first_{name}": list(texts[:MAX_LISTED])} if texts else {}


def spread(values: Iterable[int]) -> dict[str, int]:
    """Return the smallest, the median and the largest of at least one value."""
    ordered = sorted(values)
    return {"smallest": ordered[0], "median": int(median(ordered)), "largest": ordered[-1]}
