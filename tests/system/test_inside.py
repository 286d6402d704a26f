"""Names in manifests are resolved inside of a folder."""

import os
from pathlib import Path

import pytest

from mcpmq.system.inside import is_file_inside


@pytest.mark.parametrize(
    "name", ["missing", "../outside", "link", "loop", "folder", "fifo", "a\0b", "a" * 300, "a/" * 3000, "/etc/passwd"]
)
def test_only_regular_files_in_the_folder_are_inside(tmp_path: Path, name: str) -> None:
    """Missing files, links out of the folder, special files and invalid names are not."""
    folder = tmp_path / "artifact"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_text("x")
    (folder / "link").symlink_to("../outside")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    (folder / "file").write_text("x")

    assert is_file_inside(folder, "file")
    assert not is_file_inside(folder, name)
