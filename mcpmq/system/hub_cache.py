"""Layout of the cache of huggingface_hub: `datasets--owner--name/snapshots/REVISION`, with links into `blobs`."""

from pathlib import Path

SNAPSHOTS, BLOBS = "snapshots", "blobs"
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


def is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file, with all links resolved, is in a folder, or in the `blobs` of a folder in a cache."""
    target, repository = file.resolve(), repository_folder(folder)
    return target.is_relative_to(folder.resolve()) or (repository is not None and target.parent == repository / BLOBS)
