"""The committed record of other implementations reading what mcpmq writes: `make readers` makes it."""

import json
from pathlib import Path

from mcpmq.formats import ONE_GRID

RECORD = json.loads((Path(__file__).parent.parent / "benchmarks" / "results" / "readers.json").read_text())
OWN_PACKAGE = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bnb": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
}


def test_every_format_was_loaded_by_its_own_reader() -> None:
    """With the versions that did it, and the day."""
    assert {one["format"] for one in RECORD["readings"]} == set(ONE_GRID)
    assert RECORD["date"] > "2026"
    for one in RECORD["readings"]:
        assert one["reader"][OWN_PACKAGE[one["format"]]]
        assert one["reader"]["transformers"]


def test_what_was_read_is_what_was_written() -> None:
    """As near as the arithmetic of the reader is: exact in float32, a share of a standard deviation in 16 or 8 bits."""
    limits = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.5}
    for one in RECORD["readings"]:
        limit = limits[one["computed_in"]] * one["logits_standard_deviation"]
        assert one["largest_logit_difference"] <= limit, one
