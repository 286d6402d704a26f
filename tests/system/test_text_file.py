"""Text files with byte order marks, lines, and TOML files."""

from pathlib import Path

import pytest

from mcpmq.errors import GateError, RecipeError
from mcpmq.gate import Gate
from mcpmq.recipe import Recipe
from mcpmq.system import text_file
from mcpmq.system.text_file import decode_text, read_toml, split_lines


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
    ],
)
def test_byte_order_marks_are_removed(mark: bytes, encoding: str) -> None:
    """The mark selects the encoding; without one the text is UTF-8."""
    assert decode_text(mark + "name = 'é 你'\n".encode(encoding)) == "name = 'é 你'\n"


def test_other_encodings_are_errors() -> None:
    """The position of the first invalid byte is kept for the error."""
    with pytest.raises(UnicodeDecodeError) as caught:
        decode_text(b"caf\xe9 au lait")
    assert caught.value.start == 3


def test_lines_end_only_at_line_ends() -> None:
    """Characters that are line boundaries for Python, but not for JSON, stay; marks of joined files are removed."""
    text = "a\u2028\u0085\x0b\x1cb\r\nc\rd\n\ufeffe"

    assert split_lines(text) == ["a\u2028\u0085\x0b\x1cb", "c", "d", "e"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_recipes_and_gates_may_have_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    """Windows editors write it, and their line ends."""
    recipe, gate = tmp_path / "mine.toml", tmp_path / "gate.toml"
    recipe.write_bytes('name = "é"\r\n[weights]\r\n"language.*" = "int4-g32"\r\n'.encode(encoding))
    gate.write_bytes('artifacts = "gguf é"\r\n[original.image]\r\nkld = { at_most = 1 }'.encode(encoding))

    assert Recipe.load(str(recipe)).name == "é"
    assert Gate.load(gate).artifacts == "gguf é"


@pytest.mark.parametrize("content", [b"x = ", b"\xff", b"x = " + b"[" * 5000, b"x = " + b"9" * 5000, None])
def test_files_that_are_not_toml_are_errors(content: bytes | None, tmp_path: Path) -> None:
    """Bad syntax, bad text, deep nesting, huge numbers and a missing file have the given type and hint."""
    if content is not None:
        (tmp_path / "a.toml").write_bytes(content)

    with pytest.raises(GateError, match="a.toml` cannot be read") as caught:
        read_toml(tmp_path / "a.toml", GateError, "a hint")
    assert caught.value.hint == "a hint"


@pytest.mark.parametrize("path", ["a\0.toml", "a" * 5000 + ".toml"])
def test_invalid_paths_of_recipes_are_errors(path: str) -> None:
    """No path raises another exception."""
    with pytest.raises(RecipeError, match="not found"):
        Recipe.load(path)


def test_a_large_toml_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is checked before the content is read."""
    assert text_file.MAX_TOML_NBYTES == 1_048_576
    monkeypatch.setattr(text_file, "MAX_TOML_NBYTES", 3)
    (tmp_path / "a.toml").write_text("x = 1")

    with pytest.raises(GateError, match="5 bytes, more than 3"):
        read_toml(tmp_path / "a.toml", GateError, "")
