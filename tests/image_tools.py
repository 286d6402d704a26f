"""Encoders of image files that write every bit as the format specifications define it, for tests of the reader."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # color types of PNG
Samples = NDArray[Any]  # integers [height, width, channels]


def write_png(
    file: Path, samples: Samples, depth: int, color_type: int, before: Sequence[tuple[bytes, bytes]] = ()
) -> Path:
    """Write a PNG file; `before` are chunks (type, content) in front of the pixels."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + _pack_bits(row.ravel().tolist(), depth) for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks))
    return file


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _pack_bits(values: Sequence[int], depth: int) -> bytes:
    bits = "".join(f"{value:0{depth}b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))


def write_tiff(
    file: Path,
    pixels: bytes,
    size: tuple[int, int],
    bits: Sequence[int],
    photometric: int,
    order: str = "<",
    more: Mapping[int, int] | None = None,
) -> Path:
    """Write an uncompressed TIFF file of one strip; `size` is (width, height), `more` are tags with a short value."""
    width, height = size
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: list(bits),
        259: [1],
        262: [photometric],
        273: [8],
        277: [len(bits)],
        278: [height],
        279: [len(pixels)],
        **{tag: [value] for tag, value in (more or {}).items()},
    }
    directory = 8 + len(pixels) + len(pixels) % 2
    extra = directory + 2 + 12 * len(tags) + 4
    entries, overflow = b"", b""
    for tag in sorted(tags):
        code, size_code = (4, "I") if tag in (273, 279) else (3, "H")
        value = struct.pack(f"{order}{len(tags[tag])}{size_code}", *tags[tag])
        if len(value) > 4:
            value, overflow = struct.pack(f"{order}I", extra + len(overflow)), overflow + value
        entries += struct.pack(f"{order}HHI", tag, code, len(tags[tag])) + value.ljust(4, b"\0")
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    body = header + pixels + bytes(len(pixels) % 2) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    file.write_bytes(body + overflow)
    return file


def matrix_profile(columns: Sequence[Sequence[float]], gamma: float) -> bytes:
    """Return an ICC profile (version 2) of RGB: XYZ of red, green and blue for the white point D50, and a gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def gray_profile(gamma: float) -> bytes:
    """Return an ICC profile (version 2) of gray with a gamma."""
    return _profile(b"GRAY", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))})


def cmyk_profile(corners: Sequence[Sequence[int]]) -> bytes:
    """Return an ICC profile (version 2) of CMYK.

    `corners` are L*, a* and b* of the 16 combinations of no and full ink, in the order 0000, 000K, 00Y0, 00YK, ...
    """
    identity = b"".join(struct.pack(">i", 65536 * (number % 4 == 0)) for number in range(9))
    ramp = bytes(range(256))
    cells = b"".join(bytes([round(light * 2.55), a + 128, b + 128]) for light, a, b in corners)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + cells + ramp * 3
    return _profile(b"CMYK", {b"A2B0": table}, b"Lab ", b"prtr")


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(space: bytes, tags: Mapping[bytes, bytes], connection: bytes = b"XYZ ", device: bytes = b"mntr") -> bytes:
    tags = {**tags, b"wtpt": _xyz((0.9642, 1, 0.8249))}
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value.ljust(len(value) + -len(value) % 4, b"\0")
    size = struct.pack(">I", start + len(data))
    header = size + bytes(4) + b"\x02\x10\0\0" + device + space + connection + bytes(12) + b"acsp" + bytes(28)
    illuminant = _xyz((0.9642, 1, 0.8249))[8:]
    return (header + illuminant).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
