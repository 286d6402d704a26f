"""The container file: stages, user, packages, a command that mcpmq has, and a health check that works."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mcpmq.cli import app
from tests.serving.conftest import ROOT
from tests.serving.requests import Served


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


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_both_stages_have_one_python_that_the_project_supports(
    instructions: list[tuple[str, str]], project: dict[str, Any]
) -> None:
    """The virtual environment of the first stage needs the interpreter of the same image in the second."""
    images = {rest.split()[0] for name, rest in instructions if name == "FROM"}
    [version] = [found[1] for image in images if (found := re.fullmatch(r"python:(\d+\.\d+)-slim", image))]

    assert len(images) == 1
    assert version in SpecifierSet(project["requires-python"])
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_the_installed_extras_are_those_of_the_server(
    instructions: list[tuple[str, str]], project: dict[str, Any]
) -> None:
    """They are extras of the project, with a pinned version of every package, and all copied files that it names."""
    copied = [word for name, rest in instructions if name == "COPY" for word in rest.split()]
    [install] = [word for name, rest in instructions if name == "RUN" for word in shlex.split(rest) if "[" in word]
    extras = re.fullmatch(r"\.\[(.*)\]", install)
    assert extras
    pinned = {Requirement(line).name for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"}

    assert set(extras[1].split(",")) == {"gguf", "serve"}
    assert {project["readme"], *project["license-files"], "pyproject.toml", "constraints.txt", "mcpmq"} <= set(copied)
    for extra in extras[1].split(","):
        assert {Requirement(text).name for text in project["optional-dependencies"][extra]} <= pinned


def test_the_health_check_requests_the_running_server(instructions: list[tuple[str, str]], served: Served) -> None:
    """It ends with 0 while the engine is ready, and with an error if the server does not answer."""
    options, _, command = _last(instructions, "HEALTHCHECK").partition(" CMD ")
    program, *words = json.loads(command)
    served_port, free_port = served.client.base_url.port, 1

    codes = [
        subprocess.run(
            [sys.executable, *(word.replace(":8000/", f":{port}/") for word in words)], stderr=subprocess.DEVNULL
        ).returncode
        for port in (served_port, free_port)
    ]

    assert program == "python"
    assert codes == [0, 1]
    assert {option.partition("=")[0] for option in options.split()} == {"--start-period", "--interval", "--timeout"}
