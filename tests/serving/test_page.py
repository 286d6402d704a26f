"""Every control of the page, in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.serving.engine_process import EngineProcess
from tests.browser import CHROMIUM, REASON, Page, browser
from tests.serving.conftest import serving
from tests.serving.requests import Served, data_url, png

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=REASON)
ANSWERED = "document.querySelectorAll('.turn.assistant .quiet').length === {}"


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of the server."""
    with browser(tmp_path_factory.mktemp("profile")) as found:
        found.open(str(served.client.base_url))
        found.wait("document.title !== 'mcpmq'")
        yield found


@pytest.fixture(autouse=True)
def _new_conversation(page: Page) -> None:
    """Every test begins with an empty page."""
    page.call("Page.reload")
    page.wait("document.readyState === 'complete' && document.title !== 'mcpmq'")
    page.fill("#prompt", "Hi")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image file."""
    file = tmp_path / "noise.png"
    file.write_bytes(png())
    return file


def _previews(page: Page) -> int:
    return int(page.evaluate("document.querySelectorAll('#previews img').length"))


def test_the_page_describes_the_model(page: Page) -> None:
    """Name, size, engine and quality of the artifact are shown."""
    assert page.text("#model") == "tiny-phone-int4-gguf"
    assert "llama.cpp" in page.text("#facts")
    assert "512 tokens of context" in page.text("#facts")
    page.click("summary")
    assert "no report" in page.text("#quality")
    assert "llama.cpp slices and resizes images itself" in page.text("#notes")


def test_an_image_is_chosen_and_answered(page: Page, image: Path) -> None:
    """The preview appears, the answer is streamed, and time and tokens/s are shown."""
    page.choose("#file", image)
    page.wait("document.querySelector('#previews img')?.naturalWidth === 56")

    page.click("#ask")
    page.wait(ANSWERED.format(1))

    assert page.evaluate("document.querySelector('.turn.assistant .text').textContent")
    assert page.evaluate("document.querySelector('.turn.user img').naturalWidth") == 56
    assert "tokens/s" in page.text("#status")
    assert _previews(page) == 0
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_the_next_message_continues_the_conversation(page: Page, image: Path) -> None:
    """The second request has the first image and answer; a new conversation does not."""
    page.evaluate("window.bodies = []; const send = fetch; window.fetch = (u, o) => (bodies.push(o.body), send(u, o))")
    page.choose("#file", image)
    page.wait("document.querySelector('#previews img')")
    for number in (1, 2):
        page.fill("#prompt", f"Message {number}")
        page.click("#ask")
        page.wait(ANSWERED.format(number))
    page.click("#new")
    page.fill("#prompt", "Message 3")
    page.click("#ask")
    page.wait(ANSWERED.format(3))

    roles = [[message["role"] for message in json.loads(body)["messages"]] for body in page.evaluate("bodies")]
    assert roles == [["user"], ["user", "assistant", "user"], ["user"]]
    assert page.evaluate("document.querySelectorAll('.turn').length") == 6


def test_images_are_pasted_and_dropped(page: Page) -> None:
    """Files of the clipboard and of a drag are images of the message, and can be removed."""
    script = """(async (type) => {
        const file = new File([await (await fetch(URL)).blob()], "a.png", {type: "image/png"});
        const transfer = new DataTransfer();
        transfer.items.add(file);
        const name = type === "paste" ? "clipboardData" : "dataTransfer";
        const kind = type === "paste" ? ClipboardEvent : DragEvent;
        document.dispatchEvent(new kind(type, {[name]: transfer, cancelable: true}));
    })"""
    content = f"Uint8Array.from(atob({json.dumps(data_url(png()).partition(',')[2])}), c => c.charCodeAt(0))"
    script = script.replace("await (await fetch(URL)).blob()", content)

    for number, kind in enumerate(("paste", "drop"), start=1):
        page.evaluate(f"{script}('{kind}')")
        page.wait(f"document.querySelectorAll('#previews img').length === {number}")
    page.click("#previews button")

    assert _previews(page) == 1


def test_a_photo_is_taken(page: Page) -> None:
    """The dialog shows the camera; its photo is an image of the message, and the camera is released."""
    page.click("#photograph")
    page.wait("document.querySelector('#camera').open")
    page.click("#cancel")
    page.wait("!document.querySelector('#camera').open")
    page.click("#photograph")
    page.wait("document.querySelector('#camera').open && document.querySelector('#video').videoWidth > 0")
    page.click("#shutter")
    page.wait("document.querySelectorAll('#previews img').length === 1")

    assert page.evaluate("document.querySelector('#video').srcObject") is None


UNENDING = """
window.fetch = (url, options) => Promise.resolve(new Response(new ReadableStream({
    start(stream) {
        stream.enqueue(new TextEncoder().encode('data: {"choices":[{"delta":{"content":"An answer"}}]}\\n\\n'));
        options.signal.onabort = () => stream.error(options.signal.reason);
    },
})));
"""


@pytest.mark.parametrize("way", ["button", "key"])
def test_an_answer_is_stopped(page: Page, way: str) -> None:
    """Stop and Escape end an answer; its text stays, and the page accepts the next message."""
    page.evaluate(UNENDING)
    page.click("#ask")
    page.wait("document.querySelector('.turn.assistant .text')?.textContent === 'An answer'")
    if way == "button":
        page.click("#stop")
    else:
        page.press("Escape")
    page.wait("document.querySelector('#stop').disabled")

    assert page.text("#status").startswith("stopped after")
    assert page.text(".turn.assistant .text") == "An answer"
    assert not page.evaluate("document.querySelector('#ask').disabled")


def test_errors_are_shown_and_the_message_is_kept(page: Page, tmp_path: Path) -> None:
    """The reason of the server is shown; image and prompt can be corrected and sent again."""
    (tmp_path / "notes.txt").write_text("no image")
    page.choose("#file", tmp_path / "notes.txt")
    page.wait("document.querySelectorAll('#previews li').length === 1")
    page.click("#ask")
    page.wait("!document.querySelector('#error').hidden")

    assert "image 1 cannot be read" in page.text("#error")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0
    assert page.evaluate("document.querySelector('#prompt').value") == "Hi"
    assert page.evaluate("document.querySelectorAll('#previews li').length") == 1


def test_large_photos_are_scaled(page: Page, tmp_path: Path) -> None:
    """An image with more pixels than the server accepts is scaled, and the page states it."""
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "large.png")

    page.choose("#file", tmp_path / "large.png")
    page.wait("document.querySelectorAll('#previews img').length === 1")

    assert "scaled from 2000\u00d71000 to 1414\u00d7707" in page.text("#previews")
    page.click("#ask")
    page.wait(ANSWERED.format(1))


def test_the_keyboard_operates_the_page(page: Page) -> None:
    """Tab reaches all controls in their order, Enter sends the message."""
    page.evaluate("document.activeElement.blur()")
    found = []
    for _ in range(6):
        page.press("Tab")
        found.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert found[:5] == ["SUMMARY", "choose", "photograph", "prompt", "ask"]

    page.evaluate("document.querySelector('#prompt').focus()")
    page.press("Enter")
    page.wait(ANSWERED.format(1))


def test_every_control_has_a_name(page: Page, image: Path) -> None:
    """Buttons and fields have a name for screen readers; answers and errors are announced."""
    page.choose("#file", image)
    page.wait("document.querySelector('#previews img')")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if node.get("role", {}).get("value") in ("button", "textbox", "image", "log")]

    names = {node["name"]["value"] for node in controls}
    assert {"Choose image", "Take photo", "Ask", "Stop", "New conversation", "Prompt", "Remove noise.png"} <= names
    assert "Conversation" in names
    assert "" not in names
    roles = {node.get("role", {}).get("value") for node in nodes}
    assert {"status", "main", "banner", "log"} <= roles


@pytest.mark.parametrize(("dark", "background"), [(False, "rgb(251, 250, 248)"), (True, "rgb(20, 22, 26)")])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_layout_fits_every_screen(page: Page, image: Path, width: int, dark: bool, background: str) -> None:
    """Nothing is wider than the screen, and both color schemes apply."""
    page.resize(width, 800, dark=dark)
    page.choose("#file", image)
    page.wait("document.querySelector('#previews img')")
    page.click("summary")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    visible = "[...document.querySelectorAll('form button')].filter(button => button.offsetParent)"
    assert page.evaluate(f"Math.min(...{visible}.map(button => button.offsetHeight))") >= 44


def test_only_the_server_is_contacted(page: Page, served: Served, engine: EngineProcess) -> None:
    """All requests of the page, in all tests, went to the server; scripts had no errors."""
    base = str(served.client.base_url)

    assert {url for url in page.urls if not url.startswith((base, "data:", "blob:"))} == set()
    assert [error for error in page.errors if "400" not in error] == []


def test_a_missing_key_is_requested(page: Page, tiny_exports: list[Artifact]) -> None:
    """The field for the key appears, a wrong key is an error, and the right one opens the page."""
    with serving(tiny_exports[0], key="correct-horse") as locked:
        page.open(str(locked.client.base_url))
        page.wait("!document.querySelector('#key-field').hidden")
        page.fill("#key", "wrong")
        page.wait("document.querySelector('#error').textContent.includes('API key')")
        page.fill("#key", "correct-horse")
        page.wait("document.title !== 'mcpmq' && document.querySelector('#key-field').hidden")
        page.fill("#prompt", "Hi")
        page.click("#ask")
        page.wait(ANSWERED.format(1))
