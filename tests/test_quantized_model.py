"""What is stored is what is loaded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.errors import ArtifactError
from mcpmq.quantized_model import Quantized, pack_codes, unpack_codes


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_codes_survive_packing(bits: int, rows: int, columns: int, seed: int) -> None:
    """Any shape, odd widths too."""
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

    packed = pack_codes(codes, bits)

    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack_codes(packed, bits, columns), codes)


def test_every_weight_can_be_loaded(tiny_quality: Quantized) -> None:
    """Also on ggml's grids, whose blocks are stored as they are."""
    for name, spec in tiny_quality.specs.items():
        weight = tiny_quality.load(name)
        expected = spec.shape[::-1] if spec.transposed else spec.shape
        assert tuple(weight.shape) == tuple(expected), name


def test_another_kind_of_artifact_is_refused(tiny_int4: Quantized, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """An exported artifact cannot be exported again."""
    manifest = tiny_int4.artifact.manifest.model_copy(update={"kind": "gguf"})
    (tmp_path / "mcpmq.json").write_text(manifest.model_dump_json())

    with pytest.raises(ArtifactError, match="is a gguf artifact"):
        Quantized.open(tmp_path)
