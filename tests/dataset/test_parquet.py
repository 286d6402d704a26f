"""Parquet files of Hugging Face datasets."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcpmq.dataset import EmbeddedImage, ReadOptions, SampleSet
from mcpmq.errors import DatasetError, MissingExtra

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("index", pa.int64())])
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))


def _write(file: Path, rows: list[dict[str, Any]], **columns: Any) -> Path:
    file.parent.mkdir(exist_ok=True)
    arrays = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()}
    pq.write_table(pa.table(arrays), file, row_group_size=7)
    return file


def _png(folder: Path, color: str) -> bytes:
    Image.new("RGB", (20, 10), color).save(folder / "image.png")
    return (folder / "image.png").read_bytes()


def test_rows_have_messages_and_embedded_images(tmp_path: Path) -> None:
    """The columns of TRL: images as structs, parts with null fields."""
    content = _png(tmp_path, "red")
    parts = [{"type": "image", "index": 0}, {"type": "text", "text": "What color?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    rows = [{"images": [{"bytes": content, "path": "a.png"}], "messages": messages}]
    file = _write(tmp_path / "train.parquet", rows, images=pa.list_(IMAGE), messages=MESSAGES)

    [sample] = SampleSet.open(file)

    assert sample.turns[0].content == (EmbeddedImage("a.png", content), "What color?")
    assert sample.answer == "Red."


def test_a_folder_of_several_files_is_one_set(tmp_path: Path) -> None:
    """The files are read in the order of their names; a draw converts only its rows, and names them."""
    content = _png(tmp_path, "red")
    columns = {"image": IMAGE, "question": pa.string(), "answer": pa.string(), "source": pa.string()}
    for shard in range(2):
        rows = [{"image": {"bytes": content}, "question": f"q{shard}-{number}", "answer": "a"} for number in range(20)]
        _write(tmp_path / "data" / f"train-0000{shard}.parquet", rows, **columns)

    opened = SampleSet.open(tmp_path)

    assert len(opened) == 40
    assert [opened.samples[n].prompt for n in (0, 19, 20, 39)] == ["q0-0", "q0-19", "q1-0", "q1-19"]
    drawn = SampleSet.open(tmp_path, ReadOptions(6, seed=1))
    assert [one.id for one in drawn] == sorted((one.id for one in drawn), key=int)
    assert {one.prompt for one in drawn} < {one.prompt for one in opened}
    assert (len(drawn), drawn.num_records) == (6, 40)


def test_damaged_rows_and_files_are_errors(tmp_path: Path) -> None:
    """An image that is not one has its row; a file that is not Parquet, and a link out of the folder, are named."""
    rows = [{"image": {"bytes": b"no"}, "question": "q", "answer": "a"}]
    file = _write(tmp_path / "a" / "x.parquet", rows, image=IMAGE, question=pa.string(), answer=pa.string())
    with pytest.raises(DatasetError, match=r"x\.parquet` row 1: the image `bytes`"):
        SampleSet.open(file)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link.parquet").symlink_to(file)
    with pytest.raises(DatasetError, match="a link out of it"):
        SampleSet.open(tmp_path / "b")
    file.write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match="is not a Parquet file"):
        SampleSet.open(file)


def test_too_many_images_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is to draw a part of them."""
    content = _png(tmp_path, "red")
    rows = [{"image": {"bytes": content}, "question": "q", "answer": "a"}] * 3
    file = _write(tmp_path / "x.parquet", rows, image=IMAGE, question=pa.string(), answer=pa.string())
    monkeypatch.setattr("mcpmq.dataset.parquet.MAX_IMAGES_NBYTES", 2 * len(content))

    with pytest.raises(DatasetError, match="until row 3") as caught:
        SampleSet.open(file)

    assert "--samples" in caught.value.hint
    assert len(SampleSet.open(file, ReadOptions(2))) == 2


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint installs it."""
    file = _write(tmp_path / "x.parquet", [{"question": "q"}], question=pa.string())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)

    with pytest.raises(MissingExtra, match="`pyarrow` is not installed") as caught:
        SampleSet.open(file)
    assert "mcpmq[parquet]" in caught.value.hint
