"""Sample sets of the hub."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mcpmq.dataset import SampleSet, hub
from mcpmq.errors import DatasetError
from tests.hub_server import Hub

LINE = b'{"id": "1", "image": "images/a.PNG", "prompt": "What color?", "answer": "Red."}'


@pytest.fixture
def files() -> dict[str, bytes]:
    """The files of a set, and two that are not read."""
    stream = BytesIO()
    Image.new("RGB", (28, 28), "red").save(stream, "PNG")
    return {"manifest.jsonl": LINE, "images/a.PNG": stream.getvalue(), "load.py": b"raise SystemExit", "a.bin": b"x"}


def test_manifest_and_images_are_downloaded(hub: Hub, files: dict[str, bytes]) -> None:
    """A revision selects a commit; code and other files are not downloaded; the name is that of the repository."""
    hub.add("owner/photos", files, "v1")
    hub.add("owner/photos", {"manifest.jsonl": b"{}"})

    opened = SampleSet.open("owner/photos@v1")

    assert [sample.prompt for sample in opened] == ["What color?"]
    assert opened.name == "owner/photos"
    downloaded = {file.relative_to(opened.path).as_posix() for file in opened.path.rglob("*") if file.is_file()}
    assert downloaded == {"manifest.jsonl", "images/a.PNG"}


def test_the_training_split_of_parquet_files_is_selected() -> None:
    """Files of the root come before those of `data`; without a training split all are read."""
    sizes = dict.fromkeys(["data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "x/y.parquet"], 1)

    assert hub._patterns("a/b", sizes) == ["data/train-0.parquet", "data/train-1.parquet"]
    assert hub._patterns("a/b", {**sizes, "all.parquet": 1}) == ["all.parquet"]


def test_repositories_without_a_set_are_errors(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No manifest and no Parquet file, an unknown repository, and more bytes than the limit."""
    hub.add("owner/empty", {"README.md": b""})
    hub.add("owner/photos", files)
    with pytest.raises(DatasetError, match=r"`owner/empty` on the hub has neither `manifest\.jsonl` nor Parquet"):
        SampleSet.open("owner/empty")
    with pytest.raises(DatasetError, match="`owner/none` on the hub: it does not exist"):
        SampleSet.open("owner/none")


def test_a_mistyped_local_path_is_not_sent_to_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with the name of the owner is local."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()

    with pytest.raises(DatasetError, match=r"no `manifest\.jsonl`"):
        SampleSet.open("sets/trian")
    assert hub.requests == []
