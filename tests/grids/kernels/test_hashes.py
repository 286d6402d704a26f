"""The blocks of fixed weights are those of the committed hashes, on every processor."""

import json

import pytest

from mcpmq.scheme import GGML_BLOCKS
from tests.grids.kernels.hashes import FILE, block_hashes


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_blocks_have_the_committed_hash(name: str) -> None:
    """Every candidate of a search has an effect on some block; run the module `hashes` after an intended change."""
    assert block_hashes(name) == json.loads(FILE.read_text())[name]
