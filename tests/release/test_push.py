"""Pushes of releases: one commit with exactly their files, dry runs, tokens, and repositories of other content."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from mcpmq.errors import ReleaseError
from mcpmq.release.push import push
from mcpmq.release.record import CHECKSUMS, RECORD, Release, file_records, list_files, write_checksums
from mcpmq.release.verify import verify
from tests.commands import Command
from tests.hub_server import Hub

pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # of huggingface_hub
TOKEN = "hf_secretOfTheTest"
NAME = "owner/tiny"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the token of the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


def _without(release: Release, name: str, folder: Path) -> Release:
    """Copy a release, and remove a file from it and from its record."""
    path = shutil.copytree(release.path, folder)
    for one in (name, RECORD, CHECKSUMS):
        (path / one).unlink()
    record = release.record.model_copy(update={"files": file_records(path, list_files(path))})
    (path / RECORD).write_text(record.model_dump_json())
    write_checksums(path)
    return Release.open(path)


def test_a_downloaded_copy_of_a_push_is_valid(hub: Hub, token: str, tiny_release: Release, tmp_path: Path) -> None:
    """The repository is public, has one commit with every file of the release, and large files as such."""
    result = push(tiny_release, NAME)

    [(commit, files)] = hub.repositories[NAME].commits.items()
    assert result.commit == commit
    assert files == {name: (tiny_release.path / name).read_bytes() for name in list_files(tiny_release.path)}
    assert not hub.repositories[NAME].private
    assert {path for verb, path in hub.requests if verb == "PUT"} == {f"/upload/{sha256}" for sha256 in hub.objects}
    assert hub.tokens == {f"Bearer {TOKEN}"}

    hub.repositories[NAME].add({**files, ".gitattributes": b"*.gguf filter=lfs"})
    snapshot_download(NAME, local_dir=tmp_path / "copy")
    assert "files match their SHA-256" in verify(tmp_path / "copy", 1, load=False).checks[0]


def test_a_dry_run_sends_nothing(hub: Hub, tiny_release: Release) -> None:
    """It needs no token, and lists the files with their bytes."""
    result = push(tiny_release, NAME, dry_run=True)

    assert hub.requests == []
    assert result.commit is None
    assert result.files == {name: (tiny_release.path / name).stat().st_size for name in list_files(tiny_release.path)}
    assert result.to_table().rows[-1] == ("all files", [f"{sum(result.files.values()):,}"])


def test_a_push_replaces_an_earlier_release(hub: Hub, token: str, tiny_release: Release, tmp_path: Path) -> None:
    """Files that the new release does not have are deleted; large files that the hub has are not sent again."""
    push(tiny_release, NAME)
    hub.requests.clear()
    smaller = _without(tiny_release, "LICENSE", tmp_path / "smaller")

    result = push(smaller, NAME)

    assert result.deleted == ("LICENSE",)
    assert hub.repositories[NAME].commits[result.commit or ""].keys() == set(list_files(smaller.path))
    assert not [path for verb, path in hub.requests if verb == "PUT"]


def test_an_interrupted_push_continues(hub: Hub, token: str, tiny_release: Release) -> None:
    """Nothing is committed before every large file is there, and these are sent once."""
    hub.failing["/commit/"] = 500
    with pytest.raises(ReleaseError, match="500") as caught:
        push(tiny_release, NAME)
    assert "run the command again" in caught.value.hint
    assert hub.repositories[NAME].commits == {}

    hub.failing.clear()
    hub.requests.clear()
    push(tiny_release, NAME)
    assert not [path for verb, path in hub.requests if verb == "PUT"]


def test_other_repositories_are_not_changed(hub: Hub, token: str, tiny_release: Release) -> None:
    """One without a release, and a public one for a private release."""
    before = hub.add(NAME, {"model.safetensors": b"x", "README.md": b"mine"})
    with pytest.raises(ReleaseError, match="`owner/tiny` has 2 files, first `README.md`, but no `release.json`"):
        push(tiny_release, NAME)
    with pytest.raises(ReleaseError, match="exists and is public"):
        push(tiny_release, NAME, private=True)
    assert hub.repositories[NAME].commits.keys() == {before}

    push(tiny_release, "owner/secret", private=True)
    assert hub.repositories["owner/secret"].private


def test_errors_have_hints(hub: Hub, tiny_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing token, one without permission, an invalid name, a changed file."""
    with pytest.raises(ReleaseError, match="needs a token") as caught:
        push(tiny_release, NAME)
    assert "HF_TOKEN" in caught.value.hint
    with pytest.raises(ReleaseError, match="`tiny` is not a name on the hub"):
        push(tiny_release, "tiny")
    changed = shutil.copytree(tiny_release.path, tmp_path / "changed")
    (changed / "LICENSE").write_text("no")
    with pytest.raises(ReleaseError, match="is not the released file"):
        push(Release.open(changed), NAME, dry_run=True)
    assert hub.requests == []

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.failing["/api/repos/create"] = 403
    with pytest.raises(ReleaseError, match="the access is not permitted") as caught:
        push(tiny_release, NAME)
    assert "permission" in caught.value.hint


def test_the_command_pushes_and_never_prints_the_token(
    hub: Hub, token: str, tiny_release: Release, mcpmq: Command
) -> None:
    """A dry run first, then the push, which prints the name of the repository and the commit."""
    planned = mcpmq("push", tiny_release.path, NAME, "--dry-run")
    pushed = mcpmq("push", tiny_release.path, NAME, "--private", "--json")

    assert (planned.exit_code, pushed.exit_code) == (0, 0)
    assert "dry run of owner/tiny" in planned.stdout
    assert "LICENSE" in planned.stdout
    result = json.loads(pushed.stdout)
    assert result["commit"] in hub.repositories[NAME].commits
    assert {one["path"] for one in result["files"]} == set(list_files(tiny_release.path))
    assert TOKEN not in f"{planned}{pushed}"
