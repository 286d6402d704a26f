"""Names and links of folders in the cache of huggingface_hub."""

from pathlib import Path

import pytest

from mcpmq.system.hub_cache import folder_name, is_inside, repository_folder


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Return a snapshot in a cache, with one blob and links to the blob and to a secret."""
    repository = tmp_path / "datasets--owner--photos"
    folder = repository / "snapshots" / "0123abcd"
    (folder / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "9f86d0").write_text("blob")
    (repository / "secret").write_text("secret")
    (tmp_path / "other").write_text("other")
    (folder / "images" / "a.png").symlink_to("../../../blobs/9f86d0")
    (folder / "b.png").symlink_to("../../secret")
    (folder / "c.png").symlink_to(tmp_path / "other")
    return folder


def test_links_into_the_blobs_are_inside(snapshot: Path) -> None:
    """Other links out of a snapshot are not, also if the folder is reached through a link."""
    link = snapshot.parent.parent.parent / "set"
    link.symlink_to(snapshot)

    for folder in (snapshot, link):
        assert is_inside(folder / "images" / "a.png", folder)
        assert not is_inside(folder / "b.png", folder)
        assert not is_inside(folder / "c.png", folder)
    assert is_inside(snapshot / "images" / "a.png", snapshot / "images")


@pytest.mark.parametrize("is_marked", [True, False])
def test_shared_blobs_of_the_cache_are_inside(snapshot: Path, tmp_path: Path, is_marked: bool) -> None:
    """A blob may be a link to the store that all repositories share, if its marker exists."""
    name = "ab" + 62 * "0"
    (tmp_path / "blobs" / "ab").mkdir(parents=True)
    (tmp_path / "blobs" / "ab" / name).write_text("shared")
    (tmp_path / "blobs" / "ab" / "other").write_text("other")
    if is_marked:
        (tmp_path / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    blobs = snapshot.parent.parent / "blobs"
    (blobs / "1234").symlink_to(f"../../blobs/ab/{name}")
    (blobs / "5678").symlink_to("../../blobs/ab/other")
    (snapshot / "d.png").symlink_to("../../blobs/1234")
    (snapshot / "e.png").symlink_to("../../blobs/5678")

    assert is_inside(snapshot / "d.png", snapshot) == is_marked
    assert not is_inside(snapshot / "e.png", snapshot)


def test_links_into_blobs_beside_an_ordinary_folder_are_outside(tmp_path: Path) -> None:
    """The layout of the cache decides, not the name of the target."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "9f86d0").write_text("blob")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").symlink_to("../blobs/9f86d0")
    (tmp_path / "set" / "b.png").symlink_to("c.png")
    (tmp_path / "set" / "c.png").write_text("inside")

    assert not is_inside(tmp_path / "set" / "a.png", tmp_path / "set")
    assert is_inside(tmp_path / "set" / "b.png", tmp_path / "set")
    assert repository_folder(tmp_path / "set") is None


def test_a_snapshot_has_the_name_of_its_repository(snapshot: Path, tmp_path: Path) -> None:
    """Not the hash of its revision."""
    assert folder_name(snapshot) == "owner/photos"
    assert folder_name(snapshot / "images") == "owner/photos/images"
    assert folder_name(tmp_path) == tmp_path.name
