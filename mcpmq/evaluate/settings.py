"""How to measure."""

import os
from dataclasses import dataclass
from pathlib import Path

from mcpmq.system.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure, and to convert: `device` is where samples pass to calibrate, None for the one that is chosen for
    them. `cache` is the folder in which measurements of originals are kept, None for none."""

    threads: int
    cache: Path | None = None
    progress: Progress = silent
    shuffle_images: bool = False
    engine_cuts: bool = False  # llama.cpp cuts and resizes images itself, as applications have it do
    device: str | None = None

    @classmethod
    def of(
        cls,
        threads: int | None,
        cache: bool,
        progress: Progress = silent,
        shuffle_images: bool = False,
        engine_cuts: bool = False,
        device: str | None = None,
    ) -> "Settings":
        """As the command line has them: all cores unless told, and the user's own cache folder."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        kept = home / "mcpmq" if cache else None
        return cls(threads or os.cpu_count() or 1, kept, progress, shuffle_images, engine_cuts, device)
