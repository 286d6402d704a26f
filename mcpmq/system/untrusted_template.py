"""Render untrusted Jinja templates; one child process with limits serves all templates of this process."""

import atexit
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

from mcpmq.errors import EngineError
from mcpmq.system.child_process import child_process

MAX_WAIT_SECONDS = 120  # for a reply; the process limits its own processor time
MAX_CPU_SECONDS = 2  # of one template; those of published models take milliseconds


class TemplateFailedError(Exception):
    """The template is invalid, raises an error, or exceeds a limit."""


def check_template(source: str) -> None:
    """Compile a template.

    Raises:
        EngineError: the process that renders templates does not start.
        TemplateFailedError: the template is not valid, or exceeds a limit.
    """
    _request({"source": source, "variables": None})


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """Render a template with variables of JSON types.

    Raises:
        EngineError: the process that renders templates does not start.
        TemplateFailedError: the template fails or exceeds a limit: 2 seconds of processor time, 512 MiB of memory, 4 Mi
            characters of output.
    """
    return _request({"source": source, "variables": dict(variables)})


class _Renderer:
    """A running child process.

    Raises:
        EngineError: the process does not start.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._context: AbstractContextManager[subprocess.Popen[bytes]] = child_process(
            "mcpmq.system.template_process", bufsize=0, **streams
        )
        self.process = self._context.__enter__()
        try:
            self._read_line()  # written before the first request is read
        except OSError as error:
            self.process.poll()
            self.close()
            raise EngineError(
                f"the process that renders chat templates ended with code {self.process.returncode} at its start",
                "run `python -m mcpmq.system.template_process` to see its error",
            ) from error

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def is_usable(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def reply(self, request: bytes) -> dict[str, str]:
        """Send a request and return the reply.

        Raises:
            OSError: the process has ended, or does not reply.
        """
        assert self.process.stdin
        view = memoryview(request)
        while view:
            view = view[self.process.stdin.write(view) :]
        reply: dict[str, str] = json.loads(self._read_line())
        return reply

    def _read_line(self) -> bytes:
        assert self.process.stdout
        line, deadline = bytearray(), time.monotonic() + MAX_WAIT_SECONDS
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = self.process.stdout.read(1 << 16) if ready else b""
            if not part:
                raise OSError
            line += part
        return bytes(line)


_lock = Lock()
_renderers: list[_Renderer] = []  # at most one


def _request(request: Mapping[str, Any]) -> str:
    with _lock:
        renderer = _usable_renderer()
        try:
            reply = renderer.reply(json.dumps(request).encode() + b"\n")
        except BaseException as error:  # also Ctrl-C: a late reply would be taken for that of the next request
            _close_renderer()
            if isinstance(error, OSError):
                raise TemplateFailedError(_reason(renderer.process.returncode)) from error
            raise
    if "error" in reply:
        raise TemplateFailedError(reply["error"])
    return reply["text"]


def _reason(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"it takes more than {MAX_CPU_SECONDS} seconds of processor time"
    return "it exceeds the memory limit"  # not every library survives that to reply


def _usable_renderer() -> _Renderer:
    if _renderers and not _renderers[0].is_usable():
        _close_renderer()
    if not _renderers:
        _renderers.append(_Renderer())
    return _renderers[0]


@atexit.register
def _close_renderer() -> None:
    if _renderers:
        renderer = _renderers.pop()
        if renderer.owner == os.getpid():
            renderer.process.poll()
            renderer.close()
