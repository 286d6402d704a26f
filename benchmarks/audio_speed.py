"""Bytes and times of audio encoders with the published widths of MiniCPM-o 2.6 in ONNX Runtime, with random weights."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import AUDIO_REFERENCE
from benchmarks.real_size import write_checkpoint
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import AUDIO_COMPONENT, OnnxRunner, open_runner
from mcpmq.system.audio_file import SAMPLING_RATE

SCHEMES = ("f32", "int8-g32", "int4-g32")  # of encoder and projector; the first one is that of the ratios
SECONDS, REPEATS = 10, 3  # of noise; the shortest repeat counts
LAYERS = 6  # of 24
# Other sizes than those of the audio encoder are small, that of its outputs too: 3584 in the published model.
PUBLISHED_AUDIO = {"d_model": 1024, "encoder_layers": LAYERS, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096}
LANGUAGE = {"hidden_size": 1024, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}


@dataclass(frozen=True, slots=True)
class Encoder:
    """An artifact in its engine, and the inputs of the audio graph."""

    scheme: str
    nbytes: int
    runner: OnnxRunner
    inputs: dict[str, Any]

    def seconds(self) -> float:
        """Return the processor time of one forward pass on one thread."""
        start = time.process_time()
        self.runner.audio.run(None, self.inputs)
        return time.process_time() - start


def encoder_rows(folder: Path) -> dict[str, Any]:
    """Return bytes and seconds of each scheme; passes of all schemes alternate."""
    write_published_size(folder / "checkpoint")
    checkpoint = Checkpoint.open(folder / "checkpoint")
    encoders = [_open(scheme, checkpoint, folder / scheme) for scheme in SCHEMES]
    passes = [[one.seconds() for one in encoders] for _ in range(REPEATS)]
    rows = [
        {"scheme": one.scheme, "nbytes": one.nbytes, "seconds": round(min(times), 3)}
        for one, times in zip(encoders, zip(*passes, strict=True), strict=True)
    ]
    return {"audio_seconds": SECONDS, "layers": LAYERS, "rows": rows}


def write_published_size(folder: Path) -> None:
    """Write a checkpoint with an audio encoder of the published widths and one layer of the language model."""
    config = json.loads((AUDIO_REFERENCE / "config.json").read_text()) | LANGUAGE
    config["audio_config"] |= PUBLISHED_AUDIO
    write_checkpoint(folder, 1, config, AUDIO_REFERENCE)


def _open(scheme: str, checkpoint: Checkpoint, folder: Path) -> Encoder:
    weights = {"*": "int8-g32", "audio.*": scheme, "audio_projector.*": scheme}
    plan = make_plan(checkpoint, Recipe.model_validate({"name": scheme, "weights": weights}))
    artifact = export(quantize(plan, folder / "quantized", device="cpu"), "onnx", folder / "onnx")
    runner = open_runner(artifact.path, 1)
    [inputs] = _graph_inputs(runner)
    return Encoder(scheme, _nbytes(artifact), runner, inputs)


def _graph_inputs(runner: OnnxRunner) -> Iterator[dict[str, Any]]:
    noise = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * SAMPLING_RATE)
    return runner.vision_inputs.audio_graph_inputs(noise.astype(np.float32))


def _nbytes(artifact: Artifact) -> int:
    return sum(file.stat().st_size for file in artifact.component_files(AUDIO_COMPONENT))
