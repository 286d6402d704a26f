"""Settings of evaluation and conversion."""

import os
from dataclasses import dataclass
from pathlib import Path

from mcpmq.formats.kv_cache import KvCache
from mcpmq.system.progress import Notify, Progress, ignore_notice, silent


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of evaluation and conversion."""

    threads: int
    cache_folder: Path | None = None  # for measurements of originals; None disables the cache
    progress: Progress = silent
    shuffle_images: bool = False
    engine_preprocessing: bool = False  # llama.cpp slices and resizes images itself, as in applications
    device: str | None = None  # of calibration, None selects one; and of the original in PyTorch, None for the CPU
    generate_answers: bool = False  # greedy answers to the worst samples, for the report
    notify: Notify = ignore_notice  # gets warnings about inputs, before the work
    memory_limit: int | None = None  # largest resident memory of a quantization, in bytes
    kv_cache: KvCache | None = None  # types of the KV cache in llama.cpp; None for its default, F16

    @property
    def first_device(self) -> str | None:
        """The name of the device for work other than calibration, which several devices can share."""
        return "cuda" if self.device == "cuda:all" else self.device and self.device.partition(",")[0]

    @classmethod
    def from_options(
        cls,
        threads: int | None = None,
        use_cache: bool = True,
        progress: Progress = silent,
        shuffle_images: bool = False,
        engine_preprocessing: bool = False,
        device: str | None = None,
        notify: Notify = ignore_notice,
        generate_answers: bool = True,
        memory_limit: int | None = None,
        kv_cache: KvCache | None = None,
    ) -> "Settings":
        """Convert command-line options; None for `threads` uses all cores, the cache is in the user's cache folder."""
        cache_folder = _user_cache() if use_cache else None
        controls = shuffle_images, engine_preprocessing
        count = threads or os.cpu_count() or 1
        return cls(count, cache_folder, progress, *controls, device, generate_answers, notify, memory_limit, kv_cache)


def _user_cache() -> Path | None:
    """Return the cache folder of the user, or None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcpmq"
    except RuntimeError:
        return None
