"""The container file: stages, user, health check, and a command that mcpmq has."""

import json
import re
from pathlib import Path

import pytest
import typer

from mcpmq.cli import app
from tests.serving.conftest import ROOT


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Instructions and arguments of the file, without comments and continued lines."""
    text = (ROOT / "examples" / "container" / "Containerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _last(instructions: list[tuple[str, str]], name: str) -> str:
    return [rest for found, rest in instructions if found == name][-1]


def test_the_image_has_no_build_tools_and_no_root(instructions: list[tuple[str, str]]) -> None:
    """The last stage copies the environment of the first, and runs as a user with a number."""
    stages = [rest for name, rest in instructions if name == "FROM"]

    assert len(stages) == 2
    assert stages[0].endswith("AS build")
    assert "--from=build" in _last(instructions, "COPY")
    assert int(_last(instructions, "USER")) > 0


def test_copied_files_exist(instructions: list[tuple[str, str]]) -> None:
    """The build copies files of the repository."""
    for name, rest in instructions:
        if name == "COPY" and "--from" not in rest:
            assert all((ROOT / Path(file)).exists() for file in rest.split()[:-1])


def test_the_command_and_the_health_check_are_those_of_the_server(instructions: list[tuple[str, str]]) -> None:
    """The options exist, and the health check requests /ping on the port of the command."""
    _, verb, *words = json.loads(_last(instructions, "ENTRYPOINT"))
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    parsed = command.make_context(verb, words).params

    assert parsed["host"] == "0.0.0.0"
    assert f"127.0.0.1:{parsed['port']}/ping" in _last(instructions, "HEALTHCHECK")
    assert str(parsed["port"]) == _last(instructions, "EXPOSE")
