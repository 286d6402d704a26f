"""Layout of the cache of huggingface_hub: `datasets--owner--name/snapshots/COMMIT`, with links into `blobs`.

Files in `blobs` can be links themselves, to `blobs/HH/HASH` of the whole cache, which repositories share.
"""

import re
from pathlib import Path

SNAPSHOTS, BLOBS = "snapshots", "blobs"
SHARED_MARKER = ".huggingface-shared-blobs"
COMMIT, SHARED_HASH = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
REPOSITORY_KINDS = ("models", "datasets", "spaces")


def repository_folder(path: Path) -> Path | None:
    """Return the cache folder of the repository that contains a path; None outside of a cache."""
    for parent in path.resolve().parents:
        if parent.name == SNAPSHOTS and parent.parent.name.split("--")[0] in REPOSITORY_KINDS:
            return parent.parent
    return None


def folder_name(path: Path) -> str:
    """Return the name of a folder: `owner/name` of the repository in a cache, not the hash of its revision."""
    resolved, repository = path.resolve(), repository_folder(path)
    if repository is None:
        return resolved.name
    inside = resolved.relative_to(repository / SNAPSHOTS).parts[1:]
    return "/".join([*repository.name.split("--")[1:], *inside])


def snapshot_commit(path: Path) -> str | None:
    """Return the commit of a folder in a cache; None outside of a cache."""
    resolved, repository = path.resolve(), repository_folder(path)
    if repository is None:
        return None
    name = resolved.relative_to(repository / SNAPSHOTS).parts[0]
    return name if COMMIT.fullmatch(name) else None


def is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file, with all links resolved, is in a folder, or in the `blobs` of a folder in a cache."""
    target, repository = file.resolve(), repository_folder(folder)
    if target.is_relative_to(folder.resolve()):
        return True
    return repository is not None and (target.parent == repository / BLOBS or _is_shared(target, repository))


def _is_shared(target: Path, repository: Path) -> bool:
    """Return whether a file is in the blobs that the repositories of a cache share."""
    store = repository.parent / BLOBS
    named = SHARED_HASH.fullmatch(target.name) and target.parent == store / target.name[:2]
    return bool(named) and (store / SHARED_MARKER).is_file()
