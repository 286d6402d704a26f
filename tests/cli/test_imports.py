"""Commands that compute nothing with torch do not import it, because the import takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.release.record import Release
from tests.fake_reports import make_report

BLOCK_TORCH = "import sys; sys.modules['torch'] = None; sys.argv = ['mcpmq', *{!r}]"
RUN = "from mcpmq.cli import main; main()"


def run_without_torch(*arguments: object) -> None:
    """Run a command in a process in which the import of torch fails."""
    code = f"{BLOCK_TORCH.format(list(map(str, arguments)))}\n{RUN}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, and a gate that it passes."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.json").write_text(make_report().model_dump_json())
    (folder / "gate.toml").write_text("[original.image]\nkl_divergence = { at_most = 1000 }\n")
    return folder / "report.json"


def test_plans_reports_gates_and_differences_need_no_torch(
    tiny_checkpoint: Path, tiny_release: Release, report_file: Path
) -> None:
    """`plan`, `report` as a page, `check`, `diff` and `inspect` work without it."""
    run_without_torch("plan", tiny_checkpoint, "--bits", 4)
    run_without_torch("report", report_file, "--html")
    run_without_torch("diff", tiny_release.path, tiny_release.path)
    run_without_torch("inspect", tiny_release.path)
    run_without_torch("check", report_file, "--gate", report_file.with_name("gate.toml"))


def test_evaluation_needs_torch_only_in_the_process_of_the_original(
    tiny_checkpoint: Path, tiny_set: Path, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """The process that encodes samples, compares and writes the report works without it."""
    against = ("--against", tiny_checkpoint, "--eval-set", tiny_set)
    run_without_torch("evaluate", tiny_exports[0].path, *against, "--no-cache", "--no-answers", "--out", tmp_path)

    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_the_process_of_an_engine_imports_few_libraries(engine: str) -> None:
    """Its memory is a metric of the artifact: it reads encoded samples, and has no tokenizer, template or torch."""
    libraries = {"torch", "transformers", "tokenizers", "jinja2", "scipy", "onnx_ir", "onnx"}
    code = f"import sys, mcpmq.runners.worker, mcpmq.runners.{engine}; print(*{libraries} & sys.modules.keys())"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == []
