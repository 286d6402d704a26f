"""Quantized models on disk: stored codes are loaded bit for bit."""

import errno
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.errors import ArtifactError
from mcpmq.quantized_model import QuantizedModel, pack_codes, unpack_codes, write_block


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([3, 4, 5, 8]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_packed_codes_are_unpacked_to_the_same(bits: int, rows: int, columns: int, seed: int) -> None:
    """For every shape, including odd numbers of columns; codes of at most 4 bits take half a byte, even columns low."""
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

    packed = pack_codes(codes, bits)

    assert packed.shape == (rows, -(-columns // 2) if bits <= 4 else columns)
    assert torch.equal(unpack_codes(packed, bits, columns), codes)
    for row, column in np.ndindex(*codes.shape):
        byte = int(packed[row, column // 2 if bits <= 4 else column])
        assert (byte >> 4 * (column % 2) & 15 if bits <= 4 else byte) == codes[row, column]


def test_every_weight_can_be_loaded(tiny_quality: QuantizedModel) -> None:
    """Weights on grids of ggml, whose blocks are stored unchanged, have their shapes too."""
    for name, spec in tiny_quality.specs.items():
        weight = tiny_quality.load(name)
        expected = spec.shape[::-1] if spec.transposed else spec.shape
        assert tuple(weight.shape) == tuple(expected), name


def test_an_exported_artifact_is_not_a_quantized_model(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """Opening another kind of artifact is an error that names the kind."""
    manifest = tiny_int4.artifact.manifest.model_copy(update={"kind": "gguf"})
    (tmp_path / "mcpmq.json").write_text(manifest.model_dump_json())

    with pytest.raises(ArtifactError, match="is a gguf artifact"):
        QuantizedModel.open(tmp_path)


def test_a_file_that_is_too_large_is_an_error_of_the_system(tmp_path: Path) -> None:
    """safetensors reports a full disk or a file limit as text; the error has the number of the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_block(tmp_path / "head.safetensors", {"head.weight": torch.ones(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"name": "../../etc/passwd"}, "is not listed"), ({"shape": [7, 9]}, r"has the shape \[7, 9\], expected \[")],
)
def test_a_manifest_that_does_not_match_the_configuration_is_an_error(
    tiny_int4: QuantizedModel, tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    """Every weight of the configuration is in the manifest, with its shape."""
    copy = shutil.copytree(tiny_int4.path, tmp_path / "copy")
    manifest = json.loads((copy / "mcpmq.json").read_text())
    manifest["weights"][5].update(changes)
    (copy / "mcpmq.json").write_text(json.dumps(manifest))

    with pytest.raises(ArtifactError, match=expected):
        QuantizedModel.open(copy)
