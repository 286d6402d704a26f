"""Checks of every request before its body is read: host, origin and key; and headers of every response."""

import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcpmq.serving.request_error import RequestError

LOOPBACK_HOSTS = {"127.0.0.1", "localhost", "::1"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Rejects requests for another host, from pages of other origins, and without the key.

    A page in a browser can send requests to servers on this computer: with its own origin, or with a name of its own
    that it has resolved to 127.0.0.1. No header permits other origins to read answers.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, local: bool, public: frozenset[str], count: Callable[[str, int], None]
    ) -> None:
        self._app, self._local, self._public, self._count = app, local, public, count
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error = self._error(scope["path"], Headers(scope=scope))
        await (error.response() if error else self._app)(scope, receive, send_with_headers)

    def _error(self, path: str, headers: Headers) -> RequestError | None:
        host = headers.get("host", "")
        if self._local and _hostname(f"//{host}") not in LOOPBACK_HOSTS:
            return RequestError(403, "the host is not that of this server")
        if _is_foreign(headers, host):
            return RequestError(403, "requests of pages of another origin are not accepted")
        if self._key and path not in self._public and not self._has_key(headers):
            return RequestError(401, "the API key is missing or wrong; send `Authorization: Bearer KEY`")
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(key.strip().encode(), self._key or b"") and scheme.lower() == "bearer"


def _is_foreign(headers: Headers, host: str) -> bool:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site == "cross-site":
        return True
    return origin is not None and urlsplit_netloc(origin) != host.lower()


def urlsplit_netloc(url: str) -> str | None:
    """Return host and port of a URL; None for one that is not valid, such as `null`."""
    try:
        return urlsplit(url).netloc.lower() or None
    except ValueError:
        return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
