"""Checkpoints and artifacts that many tests share, built once per session."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a library imports it

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from benchmarks.commands import recipe_argument
from benchmarks.real_size import write_sparse_checkpoint
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.cli import main
from mcpmq.dataset import SampleSet
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.release.package import ReleaseOptions, package
from mcpmq.release.record import Release
from mcpmq.runners import launcher
from mcpmq.system.child_process import child_process
from tests.commands import Command, CommandResult
from tests.fake_releases import report_for, with_license
from tests.forked_workers import start_worker
from tests.hub_server import Hub, run_hub
from tests.tiny import SMALL_CONFIG, build_checkpoint
from tests.tiny_families import TINY_FAMILIES, TinyFamily

# Examples have no time limit: how long they take depends on the load of the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def forked_workers() -> Iterator[None]:
    """Fork workers that need torch, because starting them takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launcher, "child_process", start_worker)
        yield


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    """A test that leaves products rounded to bfloat16 fails, instead of tests after it on processors with bfloat16."""
    yield
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    assert found == "highest"


@pytest.fixture
def started_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start all workers as `mcpmq` does."""
    monkeypatch.setattr(launcher, "child_process", child_process)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random MiniCPM-V 2.6 checkpoint."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Do not wait for the disk: thousands of files take minutes, and no test needs them after a crash of a machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MiniCPM-V 2.6 checkpoint with a quarter of the language weights of the tiny one."""
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", SMALL_CONFIG)


@pytest.fixture(scope="module", params=TINY_FAMILIES, ids=lambda family: family.name + family.variant)
def tiny_family(request: pytest.FixtureRequest) -> TinyFamily:
    """Every tiny family, one after the other."""
    family: TinyFamily = request.param
    return family


@pytest.fixture(scope="module")
def family_checkpoint(tiny_family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint of the family."""
    return Checkpoint.open(tiny_family.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="session")
def tiny_full(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The tiny checkpoint without quantization."""
    return _quantized(tiny_checkpoint, "full", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The tiny checkpoint as phone-int4."""
    return _quantized(tiny_checkpoint, "phone-int4", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_quality(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The tiny checkpoint as quality-int4."""
    return _quantized(tiny_checkpoint, recipe_argument("quality-int4"), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_full_onnx(tiny_full: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as unquantized ONNX artifact."""
    from tests.onnx_tools import write_onnx_artifact

    return write_onnx_artifact(tiny_full, tmp_path_factory.mktemp("onnx") / "full")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniCPM-V 2.6 in its published size: headers and a sparse file for 16 GB of weights."""
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    write_sparse_checkpoint(folder, layers=28)
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples of noise: with one slice, with several slices, and with text only."""
    folder = tmp_path_factory.mktemp("set")
    random, lines = np.random.default_rng(0), []
    for number in range(10):
        line = {"id": str(number), "prompt": "What does the sign say?", "answer": f"The sign says {number}."}
        if number % 3:
            side = 56 if number % 2 else 112
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{number}.png")
            line["image"] = f"{number}.png"
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def mixed_set(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    """Samples of every group: images, two of them tagged as nonsquare, and text."""
    folder = tmp_path_factory.mktemp("mixed")
    random, lines = np.random.default_rng(1), []
    for number, side in enumerate((56, 56, 100, 100, 40, 42)):
        Image.fromarray(random.integers(0, 256, (side, 56, 3), np.uint8)).save(folder / f"{number}.png")
        tags = ["image", "nonsquare"] if side in (40, 42) else ["image"]
        answer = f"The sign says {number} and {'no ' * number}more."
        lines.append({"id": f"i{number}", "image": f"{number}.png", "prompt": "Say?", "answer": answer, "tags": tags})
    lines += [{"id": f"t{number}", "prompt": "How many?", "answer": f"There are {number}."} for number in range(3)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return SampleSet.open(folder)


def _quantized(checkpoint: Path, recipe: str, factory: pytest.TempPathFactory) -> QuantizedModel:
    plan = make_plan(Checkpoint.open(checkpoint), Recipe.load(recipe))
    return quantize(plan, factory.mktemp("quantized") / plan.recipe.name)


@pytest.fixture(scope="session")
def tiny_exports(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """phone-int4 as GGUF and as ONNX."""
    folder = tmp_path_factory.mktemp("exports")
    return [export(tiny_int4, "gguf", folder / "gguf"), export(tiny_int4, "onnx", folder / "onnx")]


@pytest.fixture(scope="session")
def tiny_release(
    tiny_checkpoint: Path, tiny_exports: list[Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """A release of both artifacts with a report and the license of the original."""
    folder = tmp_path_factory.mktemp("release")
    source = Checkpoint.open(with_license(tiny_checkpoint, folder))
    return package(tiny_exports, source, report_for(tiny_exports), folder / "tiny-phone", ReleaseOptions())


@pytest.fixture
def mcpmq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line through `main`, in this process."""

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr("sys.argv", ["mcpmq", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Run a stand-in of the hub with no repository, and use an empty cache, no token, and the LFS protocol."""
    with run_hub() as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield running
