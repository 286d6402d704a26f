"""The conversion of phase durations to speeds."""

import numpy as np
import pytest

from mcpmq.families.inputs import Inputs
from mcpmq.runners.runner import phase_timings


@pytest.mark.parametrize(("num_slices", "encode_seconds_per_slice"), [(4, 0.5), (0, 0.0)])
def test_phases_are_converted_to_speeds(num_slices: int, encode_seconds_per_slice: float) -> None:
    """Encoding is per slice, prefill per prompt token, and decode per answer token."""
    slices = (np.zeros((14, 14, 3), np.uint8),) * num_slices
    sample = Inputs("a", np.arange(17), 12, slices, np.zeros((num_slices, 2), np.int64))
    phases = phase_timings(sample, encode_seconds=2.0, prefill_seconds=3.0, decode_seconds=0.25)
    assert phases.encode_seconds_per_slice == encode_seconds_per_slice
    assert phases.prefill_tokens_per_second == 4.0
    assert phases.decode_tokens_per_second == 20.0
