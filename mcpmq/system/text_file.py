"""Read text files that editors on any system wrote, with or without a byte order mark."""

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from mcpmq.errors import McpmqError

MAX_TOML_NBYTES = 1 << 20

# The mark of UTF-32 begins with that of UTF-16, so it is compared first.
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines would also split at characters that JSON strings may contain


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or the encoding of a byte order mark, which is removed.

    Raises:
        UnicodeDecodeError: the content has another encoding.
    """
    encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def split_lines(text: str) -> list[str]:
    """Split a text at line feeds and carriage returns; byte order marks of joined files are removed."""
    return [line.removeprefix("\ufeff") for line in LINE_END.split(text)]


def read_toml(path: Path, error_type: type[McpmqError], hint: str) -> dict[str, Any]:
    """Return the content of a TOML file of at most `MAX_TOML_NBYTES`.

    Raises:
        McpmqError: of `error_type`, with the hint: the file is missing, is too large, or is not valid TOML.
    """
    try:
        if not path.is_file():
            raise error_type(f"`{path}` cannot be read: it is missing, or not a regular file", hint)
        if (nbytes := path.stat().st_size) > MAX_TOML_NBYTES:
            raise error_type(f"`{path}` has {nbytes:,} bytes, more than {MAX_TOML_NBYTES:,}", hint)
        return tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise error_type(f"`{path}` cannot be read: {error}", hint) from error
    except (ValueError, RecursionError) as error:  # also of the encoding, and of a path with a null
        raise error_type(f"`{path}` cannot be read: it is not valid TOML: {error}", hint) from error
