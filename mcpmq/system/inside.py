"""Paths that files name: relative, inside of a folder, and valid on this system."""

from pathlib import Path

from mcpmq.system.hub_cache import is_inside


def is_file_inside(folder: Path, name: str) -> bool:
    """Return whether a name is that of a regular file in a folder, with all links resolved.

    False for a name that is not valid: with a NUL, too long, or a link to itself.
    """
    try:
        file = folder / name
        return is_inside(file, folder) and file.is_file()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
        return False
