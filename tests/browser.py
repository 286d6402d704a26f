"""A headless Chromium that is driven over a pipe with the DevTools protocol."""

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REASON = "requires Chromium, e.g. `apt-get install chromium`"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
)
TIMEOUT_SECONDS = 20.0


class Page:
    """A page of the browser: evaluates scripts, sets files, emulates screens, and records requests and errors."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events, self._rest = commands, events, b""
        self._number, self._session = 0, ""
        self.urls: list[str] = []  # of all requests
        self.errors: list[str] = []  # of scripts and of the console

    def open(self, url: str) -> None:
        """Open a URL in a new tab."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._read()).get("id") != self._number:
            self._record(reply)
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, also of a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click an element, as a user with a permission to open files does."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Set the value of a field."""
        script = f"(e => {{ e.value = {json.dumps(text)}; e.dispatchEvent(new Event('change')) }})"
        self.evaluate(f"{script}(document.querySelector({json.dumps(selector)}))")

    def press(self, key: str) -> None:
        """Press a key, e.g. `Enter`, `Tab` or `Escape`."""
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            pressed: Any = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **pressed)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Emulate a screen and a color scheme."""
        size: Any = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, file: Path) -> None:
        """Write a PNG file of the visible part."""
        file.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))

    def _record(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.urls.append(parameters["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._events, 1 << 16)
            assert part, "Chromium has ended"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        parsed: dict[str, Any] = json.loads(message)
        return parsed


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Run Chromium with a new profile until the end of the block."""
    command_read, command_write = os.pipe()
    event_read, event_write = os.pipe()
    # The pipes are the descriptors 3 and 4 of Chromium.
    script = f'exec {CHROMIUM} "$@" 3<&{command_read} 4>&{event_write}'
    command = ["bash", "-c", script, "chromium", *OPTIONS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(command_read, event_write), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(command_read)
    os.close(event_write)
    try:
        yield Page(command_write, event_read)
    finally:
        process.terminate()
        process.wait()
        os.close(command_write)
        os.close(event_read)
