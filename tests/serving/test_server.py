"""The command `mcpmq serve`: its address, its end, and errors before it serves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from mcpmq.artifact import Artifact
from mcpmq.errors import MissingExtra
from mcpmq.serving import require_extra
from mcpmq.serving.backend import ServerOptions
from tests.commands import Command
from tests.serving.requests import chat


def test_a_signal_ends_the_server_and_its_engine(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """SIGTERM ends the command with the code 0 and removes the folder of the socket; its options were applied."""
    options = ("--port", "0", "--threads", "1", "--max-tokens", "600")
    command = [sys.executable, "-m", "mcpmq", "serve", str(tiny_exports[0].path), *options]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        url = process.stderr.readline().removeprefix("serving on ").strip()
        [socket] = tmp_path.glob("mcpmq-*/0.sock")
        assert httpx2.get(f"{url}/ping").json() == {"message": "ok"}
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["meta"]["limits"]["tokens"] == 600
        assert httpx2.post(f"{url}/v1/chat/completions", json=chat("Hi", max_tokens=601)).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""

    assert not socket.parent.exists()


def test_an_engine_that_cannot_load_is_an_error(mcpmq: Command, tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """The last lines of llama.cpp are part of the message."""
    for file in tiny_exports[0].path.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:100] if file.suffix == ".gguf" else content)

    result = mcpmq("serve", tmp_path, "--port", "0")

    assert result.exit_code == 1
    assert "the engine could not load the model" in result.stderr


def test_a_port_in_use_is_an_error(mcpmq: Command, client: httpx2.Client, tiny_exports: list[Artifact]) -> None:
    """The system's message names the reason."""
    result = mcpmq("serve", tiny_exports[0].path, "--port", client.base_url.port)

    assert result.exit_code == 1
    assert "Address already in use" in result.stderr


def test_missing_packages_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the extra to install."""
    monkeypatch.setattr("mcpmq.serving.find_spec", lambda name: None)

    with pytest.raises(MissingExtra) as caught:
        require_extra()

    assert caught.value.hint == "run `pip install 'mcpmq[serve]'`"


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("example.com", False)],
)
def test_loopback_addresses_are_local(host: str, local: bool) -> None:
    """Only servers on loopback addresses restrict the names of hosts."""
    assert ServerOptions(host=host).is_local is local
