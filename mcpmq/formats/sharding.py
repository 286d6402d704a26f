"""Copy an artifact with a limit on the size of its files."""

import shutil
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.errors import ReleaseError
from mcpmq.formats import FORMATS, declared_format, format_of


def split_artifact(artifact: Artifact, out: Path, max_nbytes: int | None) -> dict[str, list[str]]:
    """Copy the files of an artifact into the empty folder `out`, larger ones in parts: component -> paths.

    Raises:
        ReleaseError: a file that cannot be split, or one weight, is larger than a part.
    """
    large = [record for record in artifact.manifest.files if max_nbytes is not None and record.nbytes > max_nbytes]
    if not large or max_nbytes is None:
        return _copy_files(artifact, out)
    target = format_of(artifact.manifest.kind)
    if target is None or target.split is None:
        raise ReleaseError(
            f"`{large[0].path}` has {large[0].nbytes:,} bytes, more than the maximum of {max_nbytes:,}",
            "allow larger files (its shards have at most 5 GB), or use a format with splittable files:"
            f" {', '.join(name for name in FORMATS if declared_format(name).split)}",
        )
    return target.split(artifact, out, max_nbytes)


def _copy_files(artifact: Artifact, out: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for record in artifact.manifest.files:
        (out / record.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / record.path, out / record.path)
        files.setdefault(record.component, []).append(record.path)
    return files
