"""The wheel and its metadata."""

import re
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the present sources."""
    [path] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return zipfile.ZipFile(path)


def test_the_wheel_has_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    """Modules, recipes, templates, measured results, the page of the server, and the marker for type checkers."""
    names = {name for name in wheel.namelist() if name.startswith("mcpmq/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mcpmq").rglob("*") if path.is_file()}
    expected = {name for name in sources if "__pycache__" not in name}

    assert names == expected
    assert {Path(name).suffix for name in names} == {
        ".py",
        ".typed",
        ".toml",
        ".json",
        ".jinja",
        ".html",
        ".css",
        ".js",
        ".svg",
    }


def test_the_metadata_has_command_license_and_extras(wheel: zipfile.ZipFile) -> None:
    """The wheel declares the command, the license, and the extras that documents and hints name."""
    [folder] = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())

    assert {"gguf", "onnx", "bnb", "compressed-tensors", "serve"} <= set(metadata.get_all("Provides-Extra", []))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert b"mcpmq = mcpmq.__main__:main" in wheel.read(f"{folder}/entry_points.txt")


def test_constraints_pin_the_direct_dependencies() -> None:
    """Every package that pyproject.toml names has an exact version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    packages = {re.split(r"[^\w-]", one)[0].lower() for one in named}

    assert packages - {"mcpmq"} <= {name.replace("_", "-") for name in pinned} | pinned
