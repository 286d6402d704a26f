"""The screenshot in docs/serving.md: `python -m tests.serving.screenshot OUT/gguf` writes docs/images/page.png.

The page of the served artifact, after one answer, on a large light screen and on a small dark one.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks.serving import running_server
from tests.browser import Page, browser
from tests.serving.conftest import HELD_OUT, ROOT

FIRST, SECOND = (HELD_OUT / "images" / f"heldout-{number}.png" for number in ("0005", "0010"))
SCREENS = ((980, 840, False), (390, 840, True))  # width, height, dark
GAP, BACKGROUND, COLORS = 30, (139, 147, 158), 256


def ask(page: Page) -> None:
    """Get one answer about an image, and choose the image of a second message."""
    page.wait("document.title !== 'mcpmq'")
    page.choose("#file", FIRST)
    page.wait("document.querySelector('#previews img')?.naturalWidth")
    page.fill("#prompt", "What do you see?")
    page.click("#ask")
    page.wait("document.querySelectorAll('.turn.assistant .quiet').length === 1")
    page.choose("#file", SECOND)
    page.wait("document.querySelector('#previews img')?.naturalWidth")
    page.fill("#prompt", "Describe the chart.")


def shoot(page: Page, url: str, folder: Path) -> list[Image.Image]:
    """Return the screenshot of every screen."""
    images = []
    for width, height, dark in SCREENS:
        page.open(url)
        page.resize(width, height, dark=dark)
        ask(page)
        if dark:
            page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        else:
            page.click("summary")
            page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(folder / "screen.png")
        images.append(Image.open(folder / "screen.png").convert("RGB"))
    return images


def main() -> None:
    """Serve the artifact, and write the screenshot."""
    with (
        TemporaryDirectory() as folder,
        running_server(Path(sys.argv[1])) as (client, _),
        browser(Path(folder)) as page,
    ):
        images = shoot(page, str(client.base_url), Path(folder))
    width = sum(image.width for image in images) + GAP
    whole = Image.new("RGB", (width, max(image.height for image in images)), BACKGROUND)
    whole.paste(images[0], (0, 0))
    whole.paste(images[1], (images[0].width + GAP, 0))
    whole.quantize(COLORS).save(ROOT / "docs" / "images" / "page.png", optimize=True)


if __name__ == "__main__":
    main()
