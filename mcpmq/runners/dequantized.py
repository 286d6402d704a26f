"""Run a GPTQ or AWQ artifact in PyTorch on weights that mcpmq unpacks and dequantizes to float32.

gptqmodel, which loads these formats, conflicts with the dependencies of mcpmq; `make readers` compares it with this.
"""

from pathlib import Path

import torch

from mcpmq.families import family_named
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.runners.torch import TorchRunner, WeightStore, build_runner


def open_runner(path: Path, threads: int) -> TorchRunner:
    """Open a gptq or awq artifact.

    Raises:
        ArtifactError: the artifact has another format.
    """
    torch.set_num_threads(threads)
    opened = HuggingFaceArtifact.open(path)
    manifest = opened.artifact.manifest
    nbytes = sum(file.nbytes for file in manifest.files)
    weights = WeightStore(tuple(opened.specs.values()), lambda spec: opened.load(spec.name), nbytes)
    note = f"{manifest.kind} unpacked by mcpmq, computed in float32"
    notes = (note, weights.load_if_memory_allows())
    return build_runner(path, family_named(manifest.family), opened.config, weights, notes)
