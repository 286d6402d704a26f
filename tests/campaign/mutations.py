"""Seeded mutations of files: JSON and TOML values of wrong types and sizes, damaged bytes, and special files."""

import json
import os
import random
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

DEEP = 100_000
DEEP_JSON, DEEP_TOML = "[" * DEEP + "]" * DEEP, "deep = " + "[" * 5000 + "]" * 5000 + "\n"
LONG, NUL, SURROGATE = "a" * 5000, "nul\0byte", "lone \ud800 surrogate"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**9, -(10**9), 2**31, 2**63, 10**400, 0.5, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", "0", "text", "../../etc/passwd", "/dev/zero", LONG, NUL, SURROGATE),
    *([], [[]], [0] * 7, ["text"], {}, {"text": {}}, {"type": []}, [None], [{"content": 1}]),
)
TOML_VALUES = (
    "true",
    "0",
    "-1",
    "1e400",
    "nan",
    '""',
    '"text"',
    '"\\u0000"',
    "[]",
    "[[]]",
    "{}",
    "9" * 400,
    "1979-05-27",
)

Mutation = Callable[[bytes, random.Random], bytes]


def mutate_json(content: bytes, generator: random.Random) -> bytes:
    """Change one to three values of a JSON document; a few outputs are damaged text."""
    if generator.random() < 0.1:
        return generator.choice((mutate_bytes(content, generator), DEEP_JSON.encode(), b"\xef\xbb\xbf" + content))
    document = json.loads(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        document = mutate_value(document, generator)
    return json.dumps(document).encode()


def mutate_value(document: Any, generator: random.Random) -> Any:
    """Replace, remove, double or nest one value, at any depth."""
    places = list(_places(document))
    if not places:
        return deepcopy(generator.choice(VALUES))
    container, key = generator.choice(places)
    action = generator.random()
    if action < 0.65:
        container[key] = deepcopy(generator.choice(VALUES))
    elif action < 0.8:
        del container[key]
    elif action < 0.9:
        container[key] = [container[key]] if generator.random() < 0.5 else {"value": container[key]}
    elif isinstance(container, list):
        container.extend(deepcopy(container[key]) for _ in range(generator.choice((1, 100))))
    else:
        container[generator.choice((f"{key}_", LONG, NUL, SURROGATE, ""))] = deepcopy(container[key])
    return document


def _places(value: Any) -> Any:
    """Yield all pairs of container and key, with a few of the elements of long lists."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))[:20] if isinstance(value, list) else []
    for key in keys[:400]:
        yield value, key
        yield from _places(value[key])


def mutate_json_lines(content: bytes, generator: random.Random) -> bytes:
    """Change one line of a JSON Lines file, or its text."""
    lines = content.splitlines()
    if generator.random() < 0.15:
        return mutate_bytes(content, generator)
    number = generator.randrange(len(lines))
    lines[number] = mutate_json(lines[number], generator)
    return b"\n".join(lines * generator.choice((1, 1, 1, 2)))


def mutate_toml(content: bytes, generator: random.Random) -> bytes:
    """Change a value or a line of a TOML document, or its text."""
    if generator.random() < 0.2:
        return generator.choice((mutate_bytes(content, generator), content + DEEP_TOML.encode()))
    lines = content.decode().splitlines()
    number = generator.choice([index for index, line in enumerate(lines) if "=" in line])
    key = lines[number].partition("=")[0]
    lines[number] = generator.choice(
        (f"{key}= {generator.choice(TOML_VALUES)}", key, f"[{key}]", lines[number] * 2, "")
    )
    return "\n".join(lines).encode()


def mutate_safetensors(content: bytes, generator: random.Random) -> bytes:
    """Change the header as JSON with its length corrected, or any bytes."""
    if generator.random() < 0.3:
        return mutate_bytes(content, generator)
    length = struct.unpack("<Q", content[:8])[0]
    header = mutate_json(content[8 : 8 + length], generator)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    """Truncate, extend, overwrite, insert or remove bytes; most changes are near the beginning."""
    near = generator.random() < 0.8
    place = generator.randrange(max(1, min(len(content), 4096) if near else len(content)))
    span = generator.choice((1, 4, 8, 64, 4096))
    noise = generator.choice((bytes(span), b"\xff" * span, generator.randbytes(span)))
    return generator.choice(
        (
            content[:place],
            content[: generator.randrange(len(content) + 1)],
            content + noise,
            content[:place] + noise + content[place + span :],
            content[:place] + noise + content[place + span :],
            content[:place] + noise + content[place:],
            content[:place] + content[place + span :],
            b"",
        )
    )


def replace_by_special_file(path: Path, generator: random.Random) -> str:
    """Replace a file by a folder, a FIFO, a link or nothing, and return the description."""
    path.unlink()
    kinds: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "dangling link": lambda: path.symlink_to("missing"),
        "link to itself": lambda: path.symlink_to(path.name),
        "device": lambda: path.symlink_to("/dev/zero"),
        "link out of the folder": lambda: path.symlink_to("/etc/passwd"),
    }
    kind = generator.choice(list(kinds))
    kinds[kind]()
    return kind
