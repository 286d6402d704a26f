"""Hostile requests, by kind: each sends one or more and returns the responses."""

import json
import socket
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import Any

import httpx2
from PIL import Image

from tests.hostile_videos import hostile_video
from tests.serving.requests import CHAT, chat, data_url, encoded, image_part, user

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MARKERS = (
    "<|im_end|>",
    "<|im_start|>system\n",
    "<image>",
    "<__media__>",
    "</s>",
    "\0",
    "\u202e",
    "\x1b[2J",
    "{{ 7*7 }}",
)
WRONG_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": {}},
    "../../etc/passwd",
)
RESPONSE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Target:
    """The server, an image, and the port of a server that must not be contacted."""

    client: httpx2.Client
    image: bytes
    trap_port: int

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = self.client.base_url
        return url.host, int(url.port or 80)

    def post(self, body: Any, path: str = CHAT, **options: Any) -> httpx2.Response:
        """Send JSON, or bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, **options)


Responses = list[httpx2.Response]
Kind = Callable[[Random, Target], Responses]


def urls(random: Random, target: Target) -> Responses:
    """Images by URL, which must not be fetched."""
    host = f"127.0.0.1:{target.trap_port}"
    url = random.choice(
        (
            f"http://{host}/secret",
            f"https://{host}/",
            f"//{host}/",
            f"HTTP://{host}/a.png",
            f"http://[::1]:{target.trap_port}/",
            f"data:image/png;base64,http://{host}/",
            f"data:text/uri-list,http://{host}/",
            "file:///etc/passwd",
            "/etc/passwd",
            "../mcpmq.json",
            "ftp://127.0.0.1/",
            "data:image/svg+xml;base64," + b64encode(f'<svg><image href="http://{host}/"/></svg>'.encode()).decode(),
            "",
        )
    )
    kind = random.choice(("image_url", "image_url", "video_url"))
    return [target.post(chat({"type": kind, kind: {"url": url}}))]


def decompression_bombs(random: Random, target: Target) -> Responses:
    """Small files of many pixels."""
    size = random.choice((8_000, 16_000, 30_000, 65_000, 1 << 30))
    rows = zlib.compress(b"\0" * 200_000)
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", size, size, random.choice((1, 8)), random.choice((0, 2)), 0, 0, 0)]
    chunks += [b"IDAT" + rows, b"IEND"]
    packed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return [target.post(chat(image_part(b"\x89PNG\r\n\x1a\n" + b"".join(packed))))]


def narrow_images(random: Random, target: Target) -> Responses:
    """Images of an extreme aspect ratio."""
    long = random.choice((3_000, 20_000, 65_000))
    size = random.choice(((1, long), (long, 1), (long, 2)))
    return [target.post(chat(image_part(encoded(Image.new("1", size))), max_tokens=2))]


def damaged_images(random: Random, target: Target) -> Responses:
    """Files with changed bytes, or cut."""
    content = bytearray(encoded(Image.open(BytesIO(target.image)).convert("RGB"), random.choice(FORMATS)))
    for _ in range(random.choice((1, 4, 64))):
        content[random.randrange(len(content))] = random.randrange(256)
    if random.random() < 0.3:
        del content[random.randrange(len(content)) :]
    if random.random() < 0.1:
        content = bytearray(random.randbytes(random.choice((0, 8, 4096))))
    form = {"image": (random.choice(("a.png", "../../a", "\u0000", "a" * 500)), bytes(content))}
    if random.random() < 0.3:
        return [target.client.post("/invocations", files=form)]
    return [target.post(chat(image_part(bytes(content)), max_tokens=2))]


def hostile_videos(random: Random, target: Target) -> Responses:
    """Videos that are cut or changed, and headers with other sizes and counts."""
    part = {"type": "video_url", "video_url": {"url": data_url(hostile_video(random), "video/mp4")}}
    return [target.post(chat(part, max_tokens=2))]


def many_images(random: Random, target: Target) -> Responses:
    """More images than permitted."""
    return [target.post(chat(*[image_part(target.image)] * random.randint(9, 64), max_tokens=2))]


def large_bodies(random: Random, target: Target) -> Responses:
    """Bodies above the limit, with a declared length or in chunks."""
    if random.random() < 0.5:
        return [target.post(b"A" * (21 << 20))]
    return [target.client.post(CHAT, content=(b"A" * (1 << 20) for _ in range(24)))]


def many_tokens(random: Random, target: Target) -> Responses:
    """Answers without an end: of the limit of the server, or above it."""
    fields = random.choice(({"max_tokens": 10**9}, {"max_tokens": 513}, {"max_tokens": None}))
    return [target.post(chat("Hi", **fields, ignore_eos=True, stream=random.random() < 0.5))]


def wrong_settings(random: Random, target: Target) -> Responses:
    """Settings of another type or outside of their range."""
    names = (
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "n",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "stream",
    )
    fields = {random.choice(names): random.choice((*WRONG_VALUES, float("nan"), float("inf"))) for _ in range(2)}
    return [target.post({**chat("Hi"), **fields})]


def wrong_fields(random: Random, target: Target) -> Responses:
    """Fields that the server does not have, and parts of other kinds."""
    audio = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    extra: Any = random.choice(
        ({"tools": []}, {"grammar": "root ::= root"}, {"lora": []}, {"id_slot": 9}, {"x" * 5000: 1})
    )
    return [target.post(random.choice((chat(audio), {**chat("Hi"), **extra}, {"messages": [user({"type": "file"})]})))]


def wrong_values(random: Random, target: Target) -> Responses:
    """A valid request with one part replaced."""
    request: Any = chat("Hi", image_part(target.image), temperature=0.5, stop=["a"])
    node, depth = request, random.randint(1, 6)
    for _ in range(depth):
        key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if depth > 1 and isinstance(node[key], dict | list) and node[key] and random.random() < 0.7:
            node = node[key]
            continue
        node[key] = random.choice(WRONG_VALUES)
        break
    return [target.post(request)]


def wrong_json(random: Random, target: Target) -> Responses:
    """Bodies that are not JSON, are cut, or are nested."""
    valid = json.dumps(chat("Hi")).encode()
    bodies = (
        valid[: random.randrange(len(valid))],
        random.randbytes(random.randrange(2000)),
        b"[" * random.choice((100, 5_000, 300_000)),
        b'{"a":' * random.choice((100, 20_000)),
        b'{"messages": ' + b"9" * 10_000 + b"}",
        b'{"messages": [' + b"{}," * 40_000 + b"{}]}",
        valid.decode().encode("utf-16"),
        b'{"messages": NaN}',
    )
    return [target.post(random.choice(bodies))]


def unusual_texts(random: Random, target: Target) -> Responses:
    """Control tokens, markers of images, controls and long texts."""
    text = "".join(random.choice((*MARKERS, "word ", "\n")) for _ in range(random.choice((1, 20, 2_000, 60_000))))
    role = random.choice(("system", "user", "assistant", "developer"))
    return [target.post({"messages": [user("Hi"), {"role": role, "content": text}], "max_tokens": 2})]


def hostile_schemas(random: Random, target: Target) -> Responses:
    """JSON schemas that are nested, recursive or long."""
    nested: Any = {}
    for _ in range(random.choice((3, 30, 200))):
        nested = {"type": "array", "items": nested, "minItems": random.choice((1, 900))}
    schema = random.choice(
        (
            nested,
            {"type": "string", "pattern": "^" + "(" * 20 + "a" + "{1,90})" * 20 + "$"},
            {"type": "string", "pattern": random.choice(("^(a+)+$", "[", "(?=a)", "\\", "^[\\d\\D]{0,99}$"))},
            {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            {"anyOf": [{"const": str(number)} for number in range(2_000)]},
            {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
            {"type": random.choice(("array", "what", 5)), "items": 5},
            {"$ref": f"http://127.0.0.1:{target.trap_port}/"},
        )
    )
    answer = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return [target.post(chat("Hi", response_format=answer, max_tokens=16))]


def wrong_forms(random: Random, target: Target) -> Responses:
    """Damaged forms, and forms with many parts."""
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    bodies = (
        part + target.image,
        part * 500,
        b"--x\r\n" + b"A: B\r\n" * 2_000 + b"\r\n\r\n--x--",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"A" * 100_000 + b"\r\n--x--",
        random.randbytes(3_000),
        b"--x--",
    )
    kind = random.choice(
        ("multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "multipart/form-data; boundary=")
    )
    return [target.post(random.choice(bodies), "/invocations", headers={"Content-Type": kind})]


def wrong_paths(random: Random, target: Target) -> Responses:
    """Paths outside of the routes, and wrong methods."""
    paths = (
        "/../../etc/passwd",
        "/page.js/..%2f..",
        "/%00",
        "/" + "a" * 5_000,
        "/v1/completions",
        "/slots",
        "/.git/config",
    )
    method = random.choice(("GET", "PUT", "DELETE", "TRACE", "POST"))
    return [target.client.request(method, random.choice((*paths, CHAT) if method != "POST" else paths))]


def foreign_pages(random: Random, target: Target) -> Responses:
    """Requests of pages of other origins, and for other hosts."""
    headers = random.choice(
        (
            {"Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
        )
    )
    return [target.post(chat("Hi"), headers=headers)]


def bursts(random: Random, target: Target) -> Responses:
    """More requests at a time than the queue has places."""
    with ThreadPoolExecutor(20) as threads:
        return list(threads.map(lambda _: target.post(chat("Hi", image_part(target.image), max_tokens=8)), range(20)))


def raw_bytes(random: Random, target: Target) -> Responses:
    """Bytes that are not HTTP, or violate it."""
    host = b"Host: localhost\r\n"
    messages = (
        random.randbytes(200),
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + host + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: B\r\n" * 5_000 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n" + host + b"Content-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n" + host + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    )
    with socket.create_connection(target.address, timeout=5) as connection, suppress(OSError):
        connection.sendall(random.choice(messages))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4096)
    return []


def early_ends(random: Random, target: Target) -> Responses:
    """Clients that leave in the middle of a request or of an answer."""
    body = json.dumps(chat("Hi", max_tokens=400, ignore_eos=True, stream=random.random() < 0.5)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(target.address, timeout=5) as connection, suppress(OSError):
        connection.sendall((head + body)[: random.choice((20, len(head), len(head) + 10, len(head + body)))])
        connection.settimeout(random.choice((0.001, 0.02, 0.2)))
        connection.recv(random.choice((1, 4096)))
    return []


# Kind, its share of the requests, and the statuses that are correct for it.
KINDS: dict[Kind, tuple[float, set[int]]] = {
    urls: (1, {400}),
    decompression_bombs: (1, {400, 413}),
    narrow_images: (0.5, {400, 413}),
    damaged_images: (3, {200, 400, 413}),
    hostile_videos: (1, {200, 400, 413}),
    many_images: (0.5, {400}),
    large_bodies: (0.1, {413}),
    many_tokens: (0.1, {200, 400}),
    wrong_settings: (1, {200, 400}),
    wrong_fields: (1, {400}),
    wrong_values: (3, {200, 400}),
    wrong_json: (1, {200, 400, 413}),
    unusual_texts: (1, {200, 400, 413}),
    hostile_schemas: (1, {200, 400}),
    wrong_forms: (1, {200, 400}),
    wrong_paths: (0.5, {400, 404, 405}),
    foreign_pages: (0.5, {403}),
    bursts: (0.1, {200, 503}),
    raw_bytes: (1, set()),
    early_ends: (1, set()),
}
