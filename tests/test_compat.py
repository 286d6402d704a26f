"""The committed comparison of Hugging Face artifacts with their own loaders, written by `make compat`."""

import json
from pathlib import Path

from mcpmq.formats import FORMATS, declared_format

RECORD = json.loads((Path(__file__).parent.parent / "benchmarks" / "results" / "compat.json").read_text())
READER_PACKAGES = {
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bnb": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
}


def test_every_format_was_loaded_by_its_own_package() -> None:
    """The record has the date, and for every format the versions of transformers and of the package of the format."""
    single_scheme = {name for name in FORMATS if declared_format(name).single_scheme}
    assert {one["format"] for one in RECORD["comparisons"]} == single_scheme
    assert RECORD["date"] > "2026"
    for one in RECORD["comparisons"]:
        assert one["packages"][READER_PACKAGES[one["format"]]]
        assert one["packages"]["transformers"]


def test_logits_agree_with_mcpmq() -> None:
    """Logits are equal in float32, and within a share of their standard deviation in 16 and 8 bits."""
    limits = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.5}
    for one in RECORD["comparisons"]:
        limit = limits[one["compute_dtype"]] * one["logits_standard_deviation"]
        assert one["max_logit_difference"] <= limit, one
