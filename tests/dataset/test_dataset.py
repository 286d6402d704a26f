"""Sample sets: reading, validation of lines and images, held-out samples."""

import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcpmq.dataset import ReadOptions, SampleSet, Turn, source
from mcpmq.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one image and no manifest."""
    Image.new("RGB", (28, 14), "red").save(tmp_path / "red.png")
    return tmp_path


def _line(**changes: Any) -> str:
    line = {"id": "1", "image": "red.png", "prompt": "What color?", "answer": "Red."} | changes
    return json.dumps({key: value for key, value in line.items() if value is not None})


def _write(folder: Path, *lines: str) -> Path:
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def test_samples_come_in_the_order_of_the_lines(folder: Path) -> None:
    """Order, image, prompt, answer and tags are kept; blank lines are ignored."""
    opened = SampleSet.open(_write(folder, _line(id="b", tags=["x"]), "", _line(id="a", image=None)))

    assert SampleSet.open(folder / "manifest.jsonl") == opened
    assert [sample.id for sample in opened] == ["b", "a"]
    assert opened.samples[0].image == folder / "red.png"
    assert opened.samples[0].tags == ("x",)
    assert opened.samples[1].image is None


def test_a_line_may_have_messages(folder: Path) -> None:
    """Several turns, a system prompt, and images in any place of a prompt."""
    parts = [{"type": "text", "text": "Is"}, {"type": "image", "image": "red.png"}, {"type": "text", "text": "red?"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    line = {"id": "a", "messages": messages, "tags": ["x"]}

    [sample] = SampleSet.open(_write(folder, json.dumps(line)))

    assert sample.turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", ("Is", folder / "red.png", "red?")),
        Turn("assistant", ("Yes.",)),
        Turn("user", ("Sure?",)),
        Turn("assistant", ("No.",)),
    )
    assert sample.images == (folder / "red.png",)
    assert sample.prompt == "system: Be brief.\nuser: Is\nred?\nassistant: Yes.\nuser: Sure?"
    assert (sample.answer, sample.tags) == ("No.", ("x",))


def _messages(*roles_and_contents: tuple[str, Any]) -> str:
    messages = [{"role": role, "content": content} for role, content in roles_and_contents]
    return json.dumps({"id": "1", "messages": messages})


IMAGE = [{"type": "image", "image": "red.png"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (_messages(("user", "a")), "messages"),
        (_messages(("user", "a"), ("user", "b")), "message 1 is of `user`"),
        (_messages(("assistant", "a"), ("user", "b")), "message 0 is of `assistant`"),
        (_messages(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")), "message 1 is of `system`"),
        (_messages(("user", "a"), ("assistant", "b"), ("user", "c")), "the last message is not an answer"),
        (_messages(("user", "a"), ("assistant", IMAGE)), "a message of `assistant` has an image"),
        (_messages(("system", IMAGE), ("user", "a"), ("assistant", "b")), "a message of `system` has an image"),
        (_messages(("user", IMAGE), ("assistant", " ")), "an answer is not one text"),
        (_messages(("user", []), ("assistant", "b")), "messages.0.content"),
        (_messages(("user", "a"), ("tool", "b")), "messages.1.role"),
        (_messages(("user", [{"type": "file", "file": "a.pdf"}]), ("assistant", "b")), "messages.0.content"),
        (_messages(("user", [{**IMAGE[0], "sha256": "0" * 64}]), ("assistant", "b")), "differs from its SHA-256"),
        (_messages(("user", [{**IMAGE[0], "url": "a"}]), ("assistant", "b")), "unknown key"),
        (json.dumps({"id": "1", "prompt": "a", "messages": []}), "messages"),
    ],
)
def test_invalid_conversations_are_named(folder: Path, line: str, message: str) -> None:
    """The error has the line, the message and the reason."""
    with pytest.raises(DatasetError, match=message) as caught:
        SampleSet.open(_write(folder, line))
    assert "line 1" in str(caught.value)
    assert caught.value.hint


def test_all_invalid_lines_are_counted(folder: Path) -> None:
    """The error has their number, and the first three of them."""
    lines = [_line(id=str(number), image=None if number % 2 else "no.png") for number in range(10)]

    with pytest.raises(DatasetError, match="5 of 10 records of .*line 1.*line 3.*line 5.*and 2 more"):
        SampleSet.open(_write(folder, *lines))
    opened = SampleSet.open(folder, ReadOptions(skip_invalid=True))
    assert [sample.id for sample in opened] == ["1", "3", "5", "7", "9"]
    assert len(opened.invalid) == 5
    assert "line 9: the image `no.png` is missing" in opened.invalid[-1]


def test_samples_are_drawn_reproducibly(folder: Path) -> None:
    """A draw keeps the order; it depends on the seed, and a larger one contains a smaller one."""
    _write(folder, *[_line(id=str(number)) for number in range(50)])

    def ids(count: int, seed: int) -> list[str]:
        return [sample.id for sample in SampleSet.open(folder, ReadOptions(count, seed))]

    drawn = ids(8, 0)
    assert drawn == sorted(ids(8, 0), key=int)
    assert len(set(drawn)) == 8
    assert drawn == ["4", "6", "14", "25", "34", "36", "38", "44"]  # the same in every version
    assert set(drawn) < set(ids(20, 0))
    assert drawn != ids(8, 1)
    assert ids(60, 0) == [str(number) for number in range(50)]
    assert SampleSet.open(folder, ReadOptions(8)).num_records == 50


def test_duplicates_are_detected(folder: Path) -> None:
    """Samples with the same texts and image bytes; ids and tags may differ."""
    Image.new("RGB", (28, 14), "blue").save(folder / "blue.png")
    shutil.copyfile(folder / "red.png", folder / "copy.png")
    changes: list[dict[str, Any]] = [{}, {"image": "copy.png", "tags": ["x"]}, {"image": "blue.png"}, {"answer": "No."}]
    opened = SampleSet.open(_write(folder, *[_line(id=str(n), **one) for n, one in enumerate([*changes, {}])]))

    assert opened.duplicates == (("1", "0"), ("4", "0"))


def test_the_hash_of_a_plain_sample_is_that_of_earlier_versions(folder: Path) -> None:
    """Id, hash of the image, prompt and answer; messages of the same content are the same sample."""
    image = hashlib.sha256((folder / "red.png").read_bytes()).hexdigest()
    content = json.dumps(["1", image, "What color?", "Red."]) + json.dumps(["2", "", "What color?", "Red."])
    plain = SampleSet.open(_write(folder, _line(), _line(id="2", image=None)))
    assert plain.sha256 == hashlib.sha256(content.encode()).hexdigest()
    text = json.dumps(["What color?", "Red."]).encode()
    assert plain.fingerprints == tuple(sorted([image[:16], hashlib.sha256(text).hexdigest()[:16]]))

    parts = [*IMAGE, {"type": "text", "text": "What color?"}]
    line = _messages(("user", parts), ("assistant", "Red."))
    assert SampleSet.open(_write(folder, line, _line(id="2", image=None))).sha256 == plain.sha256
    line = _messages(("user", parts[::-1]), ("assistant", "Red."))
    assert SampleSet.open(_write(folder, line, _line(id="2", image=None))).sha256 != plain.sha256


def test_the_hash_depends_on_images_and_answers(folder: Path) -> None:
    """Another pixel or another answer changes the SHA-256."""
    first = SampleSet.open(_write(folder, _line())).sha256
    assert SampleSet.open(_write(folder, _line(answer="Blue."))).sha256 != first

    Image.new("RGB", (28, 14), "blue").save(folder / "red.png")

    assert SampleSet.open(_write(folder, _line())).sha256 != first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ("[1]", "line 1"),
        (_line(prompt=None), "prompt"),
        (_line(answer=""), "answer"),
        (_line(id=7), "id"),
        (_line(image="missing.png"), "`missing.png` is missing"),
        (_line(image="../red.png"), "outside"),
        (_line(image="/etc/passwd"), "outside"),
        (_line(image_sha256="0" * 64), "differs from its SHA-256"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "line 1"),
        (_line(id="\ud800"), "line 1: id"),
        (_line(id="a\x1b[31m"), "control character"),
        (_line(id="a\0"), "control character"),
        (_line(image=""), "image"),
        (_line(image="a" * 300), "not a valid path"),
        (_line(image="a\0.png"), "not a valid path"),
        (_line(image="."), "not a regular file"),
        (_line(image_sha256=""), "image_sha256"),
        (_line(image=None, image_sha256="0" * 64), "`image_sha256` without `image`"),
        ('{"id": "1", "prompt": "a", "answer": "b", "image": "red.png", "image": "blue.png"}', "a key is given twice"),
        ("[" * 100_000, "not a JSON object"),
        (_line(id=int("9" * 40)), "line 1: id"),
        ("9" * 5000, "not a JSON object"),
    ],
)
def test_a_broken_line_is_named(folder: Path, line: str, message: str) -> None:
    """The error has the line and the field."""
    with pytest.raises(DatasetError, match=message) as caught:
        SampleSet.open(_write(folder, line))
    assert caught.value.hint


@pytest.mark.parametrize("key", ["images", "image_path", "img", "picture", "Image", "image ", "system", "question"])
def test_unknown_keys_are_rejected(folder: Path, key: str) -> None:
    """A sample whose image has another key must not become a text sample; the hint has the known keys."""
    with pytest.raises(DatasetError, match=f"line 2: unknown key `{key}`") as caught:
        SampleSet.open(_write(folder, _line(), _line(id="2", image=None, **{key: "red.png"})))
    assert "`id`, `image`, `image_sha256`, `audio`, `audio_sha256`, `prompt`, `answer`, `tags`" in caught.value.hint
    assert "the image file is named in `image`" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_manifest_may_have_a_byte_order_mark(folder: Path, encoding: str) -> None:
    """Windows editors and shells write them, with their line ends."""
    lines = [_line(prompt="Où?"), _line(id="2", image=None, answer="a\u2028b")]
    text = "\r\n".join([json.dumps(json.loads(line), ensure_ascii=False) for line in lines])
    (folder / "manifest.jsonl").write_bytes(text.encode(encoding))

    opened = SampleSet.open(folder)

    assert [sample.prompt for sample in opened] == ["Où?", "What color?"]
    assert opened.samples[1].answer == "a\u2028b"


def test_a_manifest_in_another_encoding_is_rejected_with_the_line(folder: Path) -> None:
    """Latin-1 is not guessed."""
    (folder / "manifest.jsonl").write_bytes(_line().encode() + b'\n{"id": "caf\xe9"}')

    with pytest.raises(DatasetError, match="line 2 is not UTF-8"):
        SampleSet.open(folder)


def test_a_set_in_the_cache_of_the_hub_opens(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Manifest and images are links into `blobs`; the name is that of the repository."""
    _write(folder, _line(image="images/red.png"))
    repository = tmp_path_factory.mktemp("cache") / "datasets--owner--photos"
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    shutil.copyfile(folder / "red.png", repository / "blobs" / "aa")
    shutil.copyfile(folder / "manifest.jsonl", repository / "blobs" / "bb")
    (snapshot / "images" / "red.png").symlink_to("../../../blobs/aa")
    (snapshot / "manifest.jsonl").symlink_to("../../blobs/bb")

    opened = SampleSet.open(snapshot)

    assert opened.name == "owner/photos"
    assert opened.samples[0].image == snapshot / "images" / "red.png"


def test_manifests_outside_of_the_folder_and_special_files_are_rejected(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A link, a folder, a FIFO and a device are errors, and none is waited for."""
    outside = tmp_path_factory.mktemp("outside") / "manifest.jsonl"
    outside.write_text(_line())
    manifest = folder / "manifest.jsonl"
    manifest.symlink_to(outside)
    with pytest.raises(DatasetError, match="link out of the folder"):
        SampleSet.open(folder)
    for make in (lambda: manifest.symlink_to("/dev/zero"), manifest.mkdir, lambda: os.mkfifo(manifest)):
        manifest.rmdir() if manifest.is_dir() else manifest.unlink()
        make()
        with pytest.raises(DatasetError, match="no `manifest.jsonl`"):
            SampleSet.open(folder)


def test_a_large_manifest_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is checked before the content is read."""
    assert source.MAX_MANIFEST_NBYTES == 67_108_864
    monkeypatch.setattr(source, "MAX_MANIFEST_NBYTES", 10)

    with pytest.raises(DatasetError, match="bytes, more than 10"):
        SampleSet.open(_write(folder, _line()))


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000])
def test_invalid_paths_are_errors(path: str) -> None:
    """No path raises another exception."""
    with pytest.raises(DatasetError):
        SampleSet.open(Path(path))


def test_an_upper_case_hash_is_accepted(folder: Path) -> None:
    """Hexadecimal digits have no case."""
    digest = hashlib.sha256((folder / "red.png").read_bytes()).hexdigest().upper()

    assert len(SampleSet.open(_write(folder, _line(image_sha256=digest)))) == 1


def test_an_image_that_disappears_is_an_error(folder: Path) -> None:
    """The hash is computed when it is needed."""
    opened = SampleSet.open(_write(folder, _line()))
    (folder / "red.png").unlink()

    with pytest.raises(DatasetError, match=r"red\.png"):
        _ = opened.sha256


def test_a_link_out_of_the_folder_is_rejected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A symbolic link to a file outside of the folder is an error."""
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (1, 1)).save(outside)
    (folder / "link.png").symlink_to(outside)

    with pytest.raises(DatasetError, match="outside"):
        SampleSet.open(_write(folder, _line(image="link.png")))


def test_the_right_hash_of_an_image_is_accepted(folder: Path) -> None:
    """A line may contain the SHA-256 of its image."""
    digest = hashlib.sha256((folder / "red.png").read_bytes()).hexdigest()

    assert len(SampleSet.open(_write(folder, _line(image_sha256=digest)))) == 1


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_image_is_named(folder: Path, content: bytes) -> None:
    """Bytes that are not an image are an error when the set is opened."""
    (folder / "red.png").write_bytes(content)

    with pytest.raises(DatasetError, match=r"red\.png"):
        SampleSet.open(_write(folder, _line()))


def test_a_truncated_image_is_named(folder: Path) -> None:
    """An image with a valid header and half its pixels is an error."""
    whole = (folder / "red.png").read_bytes()
    (folder / "red.png").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(DatasetError, match=r"red\.png"):
        SampleSet.open(_write(folder, _line()))


@pytest.mark.parametrize("side", [8_001, 60_000])
def test_a_large_image_is_rejected_by_its_header(folder: Path, side: int) -> None:
    """The limit of 64 million pixels applies to the size in the header, before pixels are decoded."""
    bodies = {b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(1000))}
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in bodies.items()
    ]
    (folder / "red.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))

    with pytest.raises(DatasetError, match="pixels|too large"):
        SampleSet.open(_write(folder, _line()))


def test_an_empty_set_is_rejected(folder: Path) -> None:
    """A manifest without lines is an error."""
    with pytest.raises(DatasetError, match="no samples"):
        SampleSet.open(_write(folder, "", ""))


def test_a_folder_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    """The error names the missing manifest."""
    with pytest.raises(DatasetError, match=r"manifest\.jsonl"):
        SampleSet.open(tmp_path)


def test_ids_must_be_unique(folder: Path) -> None:
    """The same id in two lines is an error."""
    with pytest.raises(DatasetError, match="twice"):
        SampleSet.open(_write(folder, _line(), _line()))


def test_every_fifth_sample_is_held_out(folder: Path) -> None:
    """The split is deterministic, disjoint and complete."""
    opened = SampleSet.open(_write(folder, *[_line(id=str(number)) for number in range(1, 12)]))

    kept, held_out = opened.split_holdout()

    assert [sample.id for sample in held_out] == ["5", "10"]
    assert {*kept} | {*held_out} == {*opened}
    assert len(kept) + len(held_out) == len(opened)


def test_fewer_than_five_samples_cannot_be_split(folder: Path) -> None:
    """Four samples are an error."""
    with pytest.raises(DatasetError, match="4 samples are too few"):
        SampleSet.open(_write(folder, *[_line(id=str(number)) for number in range(4)])).split_holdout()


@pytest.mark.parametrize(("tokens", "warns"), [(4095, True), (4096, False)])
def test_few_tokens_have_a_warning(folder: Path, tokens: int, warns: bool) -> None:
    """The limit is 4,096 tokens; the warning has the number and the recommended one."""
    text = SampleSet.open(_write(folder, _line())).few_tokens_warning(tokens)

    assert bool(text) is warns
    if warns:
        assert text.startswith(f"calibration set `{folder.name}`: 4,095 tokens, fewer than 4,096")
        assert text.endswith("16,384 tokens are recommended")
