"""Bits and group sizes of MLX's affine quantization, without torch."""

from collections import Counter
from collections.abc import Iterable

from mcpmq.formats.hf.constraints import is_packed
from mcpmq.plan import TensorPlan
from mcpmq.scheme import GGML_BLOCKS, IntegerScheme, Scheme

GROUP_SIZES = (32, 64, 128)
GGML_BITS = {"q8_0": 8, "q4_0": 4, "q4_1": 4}  # block types with one scale, and one minimum, of float16


def bits_of(scheme: Scheme) -> int:
    """Return the bits of a code."""
    return scheme.bits if isinstance(scheme, IntegerScheme) else GGML_BITS[str(scheme)]


def group_size_of(scheme: Scheme) -> int:
    """Return the columns that share a scale and a bias."""
    if isinstance(scheme, IntegerScheme):
        assert scheme.group_size is not None
        return scheme.group_size
    return GGML_BLOCKS[str(scheme)][0]


def mode_of(scheme: Scheme) -> dict[str, int | str]:
    """Return the entry of `quantization` in config.json."""
    return {"group_size": group_size_of(scheme), "bits": bits_of(scheme), "mode": "affine"}


def common_scheme(tensors: Iterable[TensorPlan]) -> Scheme:
    """Return the scheme of most quantized tensors, the default in config.json."""
    schemes = Counter(tensor.scheme for tensor in tensors if is_packed(tensor.scheme))
    [(scheme, _)] = schemes.most_common(1)
    assert scheme is not None
    return scheme
