"""Sample sets of the hub: the folder of a commit in the cache of huggingface_hub."""

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpmq.dataset.source import MANIFEST, PARQUET_SUFFIX, select_split
from mcpmq.errors import DatasetError
from mcpmq.system.hub import HUB_ID, hub_requests, hub_token

AUDIO_SUFFIXES = (".wav", ".flac")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".avif")
MAX_DOWNLOAD_NBYTES = 16 << 30
PART_HINT = "download some of its Parquet files, and give the folder with them"


def find_set(path: Path) -> Path:
    """Return a local path, else the folder of a set `owner/name` or `owner/name@revision` of the hub.

    The manifest, the images and the audio are downloaded, or the Parquet files of a repository without a manifest.

    Raises:
        DatasetError: the download fails, the repository has neither of them, or its files are too large.
    """
    found = HUB_ID.fullmatch(str(path))
    if found is None or os.path.lexists(path) or Path(path.parts[0]).is_dir():  # not a mistyped name of a local path
        return path
    repository, revision = found["repository"], found["revision"]
    from huggingface_hub import HfApi, snapshot_download

    name = f"{repository}@{revision}" if revision else repository
    with hub_requests(name, DatasetError):
        info = HfApi(token=hub_token()).dataset_info(repository, revision=revision, files_metadata=True)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    patterns = _patterns(name, sizes)
    with hub_requests(name, DatasetError):
        options: dict[str, Any] = {"repo_type": "dataset", "token": hub_token(), "allow_patterns": patterns}
        return Path(snapshot_download(repository, revision=info.sha, **options))


def _patterns(name: str, sizes: Mapping[str, int]) -> list[str]:
    """Return the patterns of the files to download."""
    if MANIFEST in sizes:
        suffixes = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
        names = [file for file in sizes if file == MANIFEST or file.lower().endswith(suffixes)]
        patterns = [MANIFEST, *(f"*{suffix}" for suffix in (*suffixes, *map(str.upper, suffixes)))]
    else:
        parquet = [file for file in sizes if file.endswith(PARQUET_SUFFIX)]
        in_root = [file for file in parquet if "/" not in file]
        names = select_split(in_root or [file for file in parquet if file.startswith("data/") and file.count("/") == 1])
        patterns = [glob.escape(file) for file in names]
    if not names:
        raise DatasetError(
            f"`{name}` on the hub has neither `{MANIFEST}` nor Parquet files",
            "download it, and give the file of records",
        )
    if (nbytes := sum(sizes[file] for file in names)) > MAX_DOWNLOAD_NBYTES:
        raise DatasetError(f"`{name}` on the hub has {nbytes:,} bytes, more than {MAX_DOWNLOAD_NBYTES:,}", PART_HINT)
    return patterns
