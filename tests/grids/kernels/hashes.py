"""Hashes of the blocks of fixed weights, which are the same on every processor.

    python -m tests.grids.kernels.hashes

writes them to `hashes.json` after a search was changed on purpose.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from mcpmq.grids import ggml
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme

FILE = Path(__file__).parent / "hashes.json"
ROWS, COLUMNS = 192, 1024


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and an importance by exact arithmetic: rows of three distributions, outliers, signs and zeros."""
    random = np.random.default_rng(13)
    rows = random.integers(-(1 << 20), 1 << 20, (ROWS, COLUMNS)) / (1 << 20)
    rows[1::3] **= 3
    rows[2::3] *= np.exp2(random.integers(-6, 3, (ROWS // 3, COLUMNS)))
    rows[::8] = np.abs(rows[::8])
    rows[5::16, ::67] *= 16
    rows[7::16, :64] = 0
    importance = np.exp2(random.integers(-6, 6, COLUMNS)) * random.integers(1, 100, COLUMNS)
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(importance.astype(np.float32))


def block_hash(name: str, *, weighted: bool) -> str:
    """Return the first digits of the SHA-256 of all blocks of a type."""
    weight, importance = weights()
    blocks = ggml.quantize(weight, GgmlScheme(name), importance if weighted else None).blocks
    return hashlib.sha256(blocks.numpy().tobytes()).hexdigest()[:16]


def block_hashes(name: str) -> dict[str, str]:
    """Return the hashes of a type without and with importance."""
    return {"plain": block_hash(name, weighted=False), "importance": block_hash(name, weighted=True)}


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: block_hashes(name) for name in GGML_BLOCKS}, indent=1) + "\n")
