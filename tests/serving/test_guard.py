"""Keys, hosts and origins: checks before a body is read, and headers of every response."""

from collections.abc import Iterator

import httpx2
import pytest

from mcpmq.artifact import Artifact
from tests.serving.conftest import serving
from tests.serving.requests import CHAT, chat, error_message

KEY = "correct-horse"


@pytest.fixture(scope="module")
def locked(tiny_exports: list[Artifact]) -> Iterator[httpx2.Client]:
    """A client of a server with a key."""
    with serving(tiny_exports[0], key=KEY) as served:
        yield served.client


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY])
def test_requests_without_the_key_are_rejected(locked: httpx2.Client, authorization: str | None) -> None:
    """A missing, wrong or incomplete key has the status 401."""
    headers = {} if authorization is None else {"Authorization": authorization}

    for method, path in (("POST", CHAT), ("POST", "/invocations"), ("GET", "/v1/models"), ("GET", "/metrics")):
        response = locked.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
        assert response.status_code == 401
        assert "API key" in error_message(response)


def test_keys_that_are_not_ascii_are_rejected(locked: httpx2.Client) -> None:
    """Any bytes in the header are compared without an error."""
    assert locked.get("/v1/models", headers={b"Authorization": "Bearer \u00e9".encode()}).status_code == 401


def test_requests_with_the_key_are_answered(locked: httpx2.Client) -> None:
    """The key in the header of OpenAI's client opens all routes."""
    headers = {"Authorization": f"Bearer {KEY}"}

    assert locked.post(CHAT, json=chat("Hi"), headers=headers).status_code == 200
    assert locked.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/ping", "/page.css", "/page.js", "/favicon.ico"])
def test_the_page_and_its_health_need_no_key(locked: httpx2.Client, path: str) -> None:
    """The page asks for the key; health checks have none."""
    assert locked.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_hosts_and_origins_are_rejected(client: httpx2.Client, headers: dict[str, str]) -> None:
    """Pages of other origins, also with a name that resolves to this computer, cannot send requests."""
    for response in (client.post(CHAT, json=chat("Hi"), headers=headers), client.get("/", headers=headers)):
        assert response.status_code in (400, 403)


def test_the_page_of_the_server_is_accepted(client: httpx2.Client) -> None:
    """Its origin is that of the server, under each name of this computer."""
    port = client.base_url.port
    for host in ("127.0.0.1", "localhost", "[::1]"):
        headers = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}", "Sec-Fetch-Site": "same-origin"}
        assert client.post(CHAT, json=chat("Hi"), headers=headers).status_code == 200


def test_no_response_permits_other_origins(client: httpx2.Client) -> None:
    """Neither answers nor errors nor preflight requests have CORS headers; all have a content security policy."""
    preflight = client.options(CHAT, headers={"Access-Control-Request-Method": "POST"})
    for response in (client.get("/ping"), client.get("/nope"), client.post(CHAT, json={}), preflight):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert response.headers["x-content-type-options"] == "nosniff"
    assert preflight.status_code == 405
