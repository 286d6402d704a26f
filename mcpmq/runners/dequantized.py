"""Run a GPTQ or AWQ artifact in PyTorch on weights that mcpmq unpacks and dequantizes to float32.

gptqmodel, which loads these formats, conflicts with the dependencies of mcpmq; `make readers` compares it with this.
"""

from pathlib import Path

import torch

from mcpmq.families import family_named
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.runners.torch import STREAMED_NOTE, TorchRunner, WeightStore, build_runner


def open_runner(path: Path, threads: int) -> TorchRunner:
    """Open a gptq or awq artifact.

    Raises:
        ArtifactError: the artifact has another format.
    """
    torch.set_num_threads(threads)
    opened = HuggingFaceArtifact.open(path)
    manifest = opened.artifact.manifest
    weights = WeightStore(tuple(opened.specs.values()), lambda spec: opened.load(spec.name))
    notes = (f"{manifest.kind} unpacked by mcpmq", STREAMED_NOTE)
    return build_runner(path, family_named(manifest.family), opened.config, weights, notes)
