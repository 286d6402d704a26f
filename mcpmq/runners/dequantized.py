"""A GPTQ or AWQ artifact unpacked by mcpmq and run in PyTorch, in float32, block by block.

Their reader, gptqmodel, does not install beside what mcpmq needs; `make readers` compares it with this.
"""

from pathlib import Path

import torch

from mcpmq.families import family_named
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.runners.torch import TorchRunner, Weights, assemble


def open_runner(path: Path, threads: int) -> TorchRunner:
    """Open a folder that `export` wrote as gptq or awq.

    Raises:
        ArtifactError: it is another kind of artifact.
    """
    torch.set_num_threads(threads)
    opened = HuggingFaceArtifact.open(path)
    manifest = opened.artifact.manifest
    nbytes = sum(file.nbytes for file in manifest.files)
    weights = Weights(tuple(opened.specs.values()), lambda spec: opened.load(spec.name), nbytes)
    note = f"{manifest.kind} unpacked by mcpmq, computed in float32"
    notes = (note, weights.keep_if_there_is_room())
    return assemble(path, family_named(manifest.family), opened.config, weights, notes)
