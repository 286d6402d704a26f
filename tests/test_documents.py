"""Documents: code blocks run, command lines have options that mcpmq has, drawings are those of the results."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

import mcpmq
from benchmarks import size_plot, structured_plot
from benchmarks.commands import recipe_argument
from benchmarks.markdown import load_result
from benchmarks.product_tables import all_commands
from benchmarks.svg import THEMES
from mcpmq.formats import FormatName
from mcpmq.gate import Gate
from mcpmq.recipe import Recipe
from mcpmq.sweep import SweepFile
from tests.tiny_families import TINY_FAMILIES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")})
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", re.DOTALL)
LOADERS = ("libraries.md", "running.md")  # their code loads artifacts in other libraries
SERVED = ("serving.md",)  # its code needs a running server


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the code blocks of a document in these languages, without generated ones."""
    return [text for language, text in BLOCK.findall(GENERATED.sub("", path.read_text())) if language in languages]


def commands() -> Iterator[str]:
    """Yield every line of a document that runs mcpmq, without the rest of a pipeline."""
    for path in DOCUMENTS:
        for block in blocks(path, "", "bash", "sh", "yaml"):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:- )?(?:run: )?(mcpmq .*)", line.strip())
                if found:
                    yield re.split(r" [|>] ", found[1])[0]


PYTHON = {  # code -> name; a block in two documents runs once
    code: f"{path.name}-{number}"
    for path in DOCUMENTS
    if path.name not in (*LOADERS, *SERVED)
    for number, code in enumerate(blocks(path, "python"))
}
TOML = {code: f"{path.name}-{number}" for path in DOCUMENTS for number, code in enumerate(blocks(path, "toml"))}
LOADING = {
    code: f"{name}-{number}" for name in LOADERS for number, code in enumerate(blocks(ROOT / "docs" / name, "python"))
}


def _command(words: list[str]) -> tuple[str, list[str]]:
    """Split words into the name of a command and its arguments."""
    length = 1 if words[0] in all_commands() else 2
    return " ".join(words[:length]), words[length:]


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_command_lines_are_valid(line: str) -> None:
    """The parser of mcpmq accepts every command line: the command, its options and the number of its arguments."""
    _, *words = shlex.split(line, comments=True)
    verb, words = _command(words)

    assert all_commands()[verb].make_context(verb, words).params is not None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_sentences_exist(path: Path) -> None:
    """Commands in inline code have a name and options that mcpmq has."""
    known = all_commands()
    for line in re.findall(r"`mcpmq ([a-z][^`]*)`", path.read_text()):
        verb, words = _command(line.split())
        options = {option for parameter in known[verb].params for option in (*parameter.opts, "--help")}

        assert {word for word in words if word.startswith("--")} <= options, line


def test_documents_have_command_lines() -> None:
    """The pattern for command lines finds those of the README and of the guides."""
    assert {line.split()[1] for line in commands()} >= {
        "plan",
        "convert",
        "evaluate",
        "check",
        "report",
        "package",
        "serve",
    }


@pytest.mark.parametrize("code", PYTHON, ids=PYTHON.values())
def test_the_examples_run(
    code: str, small_checkpoint: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block runs, and leaves an artifact and a report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "CHECKPOINT").symlink_to(small_checkpoint)
    (tmp_path / "SAMPLES").symlink_to(tiny_set)

    exec(compile(code, "document", "exec"), {})

    assert list((tmp_path / "OUT").glob("*/mcpmq.json"))
    assert mcpmq.Report.load(tmp_path / "OUT").artifacts


@pytest.mark.parametrize("text", TOML, ids=TOML.values())
def test_recipes_gates_and_sweeps_in_documents_are_valid(text: str, tmp_path: Path) -> None:
    """A block with a table of weights is a recipe, one with checkpoints a sweep; others are gates."""
    file = tmp_path / "block.toml"
    file.write_text(text)
    if "checkpoints" in text:
        assert list(SweepFile.load(file).combinations())
        return

    assert Recipe.load(str(file)).weights if "[weights]" in text else list(Gate.load(file).bounds("original"))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image and OUT/FORMAT of a tiny Qwen2-VL checkpoint, for the formats with installed packages."""
    folder = tmp_path_factory.mktemp("artifacts")
    Image.new("RGB", (112, 84)).save(folder / "photo.jpg")
    [family] = [one for one in TINY_FAMILIES if one.name == "qwen2-vl" and not one.variant]
    checkpoint = mcpmq.Checkpoint.open(family.build(folder / "NAME"))
    for recipe, formats in {
        "phone-int4": ["gguf", "onnx"],
        recipe_argument("language-int4"): ["compressed-tensors"],
        "language-nf4": ["bnb"],
    }.items():
        quantized = mcpmq.quantize(mcpmq.make_plan(checkpoint, mcpmq.Recipe.load(recipe)), folder / Path(recipe).stem)
        for name in formats:
            mcpmq.export(quantized, cast(FormatName, name), folder / "OUT" / name)
    return folder


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("code", LOADING, ids=LOADING.values())
def test_other_libraries_load_the_artifacts(code: str, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that loads an artifact in another library runs, if the library is installed."""
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    if missing := [name for name in imported if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.chdir(artifacts)

    exec(compile(code, "document", "exec"), {})


@pytest.mark.parametrize("theme", THEMES)
def test_the_plot_is_that_of_the_results(theme: str) -> None:
    """The committed drawings are those of the committed results."""
    drawing = size_plot.draw(load_result("budgets"), THEMES[theme])

    assert (size_plot.IMAGES / f"size-{theme}.svg").read_text() == drawing


def test_the_plots_of_structured_compression_are_those_of_the_results() -> None:
    """The committed drawings are those of the committed results."""
    for name, drawing in structured_plot.drawings().items():
        assert (structured_plot.IMAGES / name).read_text() == drawing


@pytest.mark.parametrize("document", ["README.md", "benchmarks/README.md"])
def test_images_of_documents_exist(document: str) -> None:
    """Every image of Markdown is a file, also those that a generated part adds with new results."""
    file = ROOT / document
    found = re.findall(r"!\[[^\]]*\]\(([^)]+)\)|src(?:set)?=\"([^\"]+)\"", file.read_text())

    assert found
    assert [one for pair in found for one in pair if one and not (file.parent / one).is_file()] == []
