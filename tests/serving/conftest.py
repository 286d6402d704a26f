"""A server for the tiny GGUF artifact with its engine in a child process, and artifacts of the reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.serving.api import Api, make_app
from mcpmq.serving.backend import ServerOptions, running_model
from mcpmq.serving.engine_process import EngineProcess
from mcpmq.serving.http_server import make_server, open_socket
from mcpmq.serving.limits import LIMITS, Limits
from tests.serving.requests import Served

ROOT = Path(__file__).parent.parent.parent
HELD_OUT = ROOT / "calibration" / "heldout"
CONTEXT = 512


@contextmanager
def serving(artifact: Artifact, limits: Limits = LIMITS, key: str | None = None) -> Iterator[Served]:
    """Serve an artifact on a free port until the end of the block."""
    options = ServerOptions(port=0, context=CONTEXT, threads=1, key=key)
    with (
        open_socket(options.host, options.port) as listening,
        running_model(artifact.path, options, limits) as (engine, model),
    ):
        server = make_server(make_app(Api(model, engine, options.slots, limits), key=key, local=True), limits)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with httpx2.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
            yield Served(client, engine)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served(tiny_exports: list[Artifact]) -> Iterator[Served]:
    """A server without a key."""
    with serving(tiny_exports[0], replace(LIMITS, body_nbytes=1 << 20, pixels=1_000_000, queue=2)) as found:
        yield found


@pytest.fixture
def client(served: Served) -> httpx2.Client:
    """A client of the server."""
    return served.client


@pytest.fixture
def engine(served: Served) -> EngineProcess:
    """The engine of the server."""
    return served.engine


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint as a conversion without a report: quantized/, gguf/ and onnx/ with phone-int4."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    plan = make_plan(Checkpoint.open(ROOT / "calibration" / "reference"), Recipe.load("phone-int4"))
    quantized = quantize(plan, folder / "quantized")
    export(quantized, "gguf", folder / "gguf")
    export(quantized, "onnx", folder / "onnx")
    return folder


@pytest.fixture(scope="session")
def reference_gguf(reference_folder: Path) -> Artifact:
    """The reference as GGUF."""
    return Artifact.open(reference_folder / "gguf")


@pytest.fixture(scope="session")
def held_out() -> list[Sample]:
    """Two square images, a sliced image that is not square, and a text."""
    samples = {sample.id: sample for sample in SampleSet.open(HELD_OUT).samples}
    square = [one for one in samples.values() if one.image and "nonsquare" not in one.tags][:2]
    nonsquare = [one for one in samples.values() if one.image and "nonsquare" in one.tags][:1]
    return [*square, *nonsquare, *[one for one in samples.values() if one.image is None][:1]]
