"""Video files that are cut, changed, or whose headers have wrong sizes and counts."""

import struct
from functools import cache
from io import BytesIO
from random import Random
from typing import Any

import numpy as np
from PIL import Image

ANIMATIONS, CONTAINERS = ("WEBP", "GIF", "PNG"), ("mp4", "matroska", "avi")
SIDE, COUNT = 64, 6
# Numbers of big-endian headers of MP4: the name of a box or sample entry, the offset behind it, and the format.
FIELDS = (
    (b"mp4v", 24, ">H"),  # width
    (b"mp4v", 26, ">H"),  # height
    (b"stts", 4, ">I"),  # entries, frames and their duration
    (b"stts", 8, ">I"),
    (b"stts", 12, ">I"),
    (b"stsz", 4, ">I"),  # bytes of a frame, number of frames
    (b"stsz", 8, ">I"),
    (b"stsc", 4, ">I"),  # entries and frames of a chunk
    (b"stsc", 8, ">I"),
    (b"stco", 4, ">I"),  # chunks
    (b"mdhd", 12, ">I"),  # units of a second
    (b"mdhd", 16, ">I"),  # duration
    (b"moov", -8, ">I"),  # bytes of a box
    (b"mdat", -8, ">I"),
    (b"acTL", 0, ">I"),  # frames of a PNG file
    (b"IHDR", 0, ">I"),  # its width
    (b"fcTL", 4, ">I"),  # width of a frame
    (b"VP8X", 8, ">I"),  # canvas of a WebP file
    (b"ANMF", 4, ">I"),  # place of a frame
)
NUMBERS = (0, 1, 16_000, 65_535, 10**6, 2**31 - 1, 2**32 - 1)


def _noise(count: int) -> Any:
    return np.random.default_rng(7).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@cache
def animation(name: str, count: int = COUNT) -> bytes:
    """Return an animated image of noise in a format of Pillow."""
    first, *rest = map(Image.fromarray, _noise(count))
    stream = BytesIO()
    first.save(stream, name, save_all=True, append_images=rest, duration=500)
    return stream.getvalue()


@cache
def container(name: str, side: int = SIDE) -> bytes:
    """Return a container of noise with frames of `side` pixels."""
    import av

    stream = BytesIO()
    with av.open(stream, "w", format=name) as opened:
        video: Any = opened.add_stream("mpeg4", rate=2)
        video.width, video.height, video.pix_fmt = side, side, "yuv420p"
        for frame in _noise(COUNT):
            pixels = np.resize(frame, (side, side, 3))
            opened.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        opened.mux(video.encode())
    return stream.getvalue()


def with_number(content: bytes, field: tuple[bytes, int, str], number: int) -> bytes:
    """Return the content with another number behind the first mark of a field; unchanged without the mark."""
    mark, offset, form = field
    place = content.find(mark) + len(mark) + offset
    if mark not in content or not 0 <= place <= len(content) - struct.calcsize(form):
        return content
    packed = struct.pack(form, number & (0xFFFF if form == ">H" else 0xFFFFFFFF))
    return content[:place] + packed + content[place + len(packed) :]


def many_frames(count: int) -> bytes:
    """Return a GIF file of frames of one pixel, 15 bytes each."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return _gif(1) + frame * count + b";"


def growing(side: int) -> bytes:
    """Return a GIF file whose second frame is larger than its screen."""
    frames = (b"\x2c" + struct.pack("<HHHHB", 0, 0, one, one, 0) + b"\x02\x02\x44\x01\x00" for one in (1, side))
    return _gif(1) + b"".join(frames) + b";"


def _gif(side: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"


def hostile_video(random: Random) -> bytes:
    """Return a file that is cut, changed at random, or has a header with other sizes and counts."""
    kind = random.choice(("cut", "changed", "header", "header", "frames", "grown"))
    if kind == "frames":
        return many_frames(random.choice((0, 1, 3_000)))
    if kind == "grown":
        return growing(random.choice((0, 2, 9_000, 65_535)))
    name = random.choice((*ANIMATIONS, *CONTAINERS))
    content = animation(name) if name in ANIMATIONS else container(name)
    if kind == "cut":
        return content[: random.choice((0, 1, 12, 64, random.randrange(len(content))))]
    if kind == "header":
        marked = [field for field in FIELDS if field[0] in content] or [(content[4:8], 0, ">I")]
        return with_number(content, random.choice(marked), random.choice(NUMBERS))
    changed = bytearray(content)
    for _ in range(random.choice((1, 8, 64))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)
