"""Time and memory of `mcpmq search --imatrix` on a checkpoint of the published size of MiniCPM-V 2.6.

python -m benchmarks.search_speed --write

Only the rows that a search reads have values, and the inputs of all matrices have equal mean squares: time and memory
do not depend on values.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.commands import STARTER, WORK, provenance, write_result
from benchmarks.peers.artifacts import measure_command
from benchmarks.peers_speed import mcpmq
from benchmarks.real_size import write_sparse_checkpoint
from mcpmq.artifact import Artifact
from mcpmq.calibrate import imatrix
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.calibrate.square_sums import SquareSums
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.mixed_precision.layer_error import SAMPLED_ROWS

FOLDER = WORK / "search-speed"
TOKENS = {"vision": 640, "text": 80, "answer": 20}
MAX_SIZE = "4.6GB"


def write_uniform_imatrix(checkpoint: Checkpoint, out: Path) -> Artifact:
    """Write an importance matrix in which every input has a mean square of 1."""
    count = sum(TOKENS.values())
    sums = {
        spec.name: (SquareSums(torch.full((spec.shape[0 if spec.transposed else 1],), float(count)), TOKENS),)
        for spec in checkpoint.specs
        if spec.role == "matrix"
    }
    with patch.object(imatrix, "_collect_sums", lambda *_: sums):
        return write_imatrix(checkpoint, SampleSet.open(STARTER), out)


def write_sampled_rows(checkpoint: Checkpoint) -> None:
    """Fill the rows of a sparse checkpoint that a search reads; packed matrices, read whole, are filled whole."""
    random = np.random.default_rng(0)
    for spec in checkpoint.specs:
        entry = checkpoint.entries[spec.name]
        rows = 1 if spec.role == "other" or spec.transposed else entry.shape[0]  # 1: written at once
        step = -(-rows // SAMPLED_ROWS)
        with entry.file.open("r+b", buffering=0) as stream:
            for row in range(0, rows, step):
                values = random.standard_normal(entry.nbytes // rows // 2).astype(np.float32) * 0.02
                stream.seek(entry.offset + row * (entry.nbytes // rows))
                stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def measure(layers: int) -> dict[str, object]:
    """Return the cost of a search on a checkpoint of this number of layers."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_sparse_checkpoint(FOLDER / "checkpoint", layers)
    checkpoint = Checkpoint.open(FOLDER / "checkpoint")
    write_sampled_rows(checkpoint)
    write_uniform_imatrix(checkpoint, FOLDER / "imatrix")
    words = ("--format", "gguf", "--max-size", MAX_SIZE, "--imatrix", FOLDER / "imatrix")
    cost = measure_command(
        mcpmq("search", FOLDER / "checkpoint", FOLDER / "mine.toml", *words), FOLDER / "search.log", FOLDER
    )
    return {"weights_nbytes": checkpoint.nbytes, "cost": asdict(cost)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--write", action="store_true", help="write the result to benchmarks/results")
    arguments = parser.parse_args()
    found = measure(arguments.layers)
    print(json.dumps(found))
    if arguments.write:
        write_result("search-speed", provenance("benchmarks.search_speed", "numba") | found)
