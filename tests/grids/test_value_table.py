"""The lookup of table values against a binary search."""

import torch

from mcpmq.grids.ggml_blocks import IQ4_NL_VALUES
from mcpmq.grids.value_table import ValueTable


def test_codes_equal_those_of_a_binary_search() -> None:
    """At any target, at all midpoints exactly, and beyond the ends; the lower of two equally near values wins."""
    values = torch.tensor(IQ4_NL_VALUES, dtype=torch.float32)
    table, midpoints = ValueTable(values), (values[1:] + values[:-1]) / 2
    random = 80 * torch.randn(20000, generator=torch.Generator().manual_seed(0))
    targets = torch.cat([random, midpoints, midpoints + 1e-4, midpoints - 1e-4, torch.tensor([-1e6, 1e6])])

    assert torch.equal(table.nearest(targets).long(), torch.bucketize(targets, midpoints))
    assert torch.equal(table.take(table.nearest(values)), values)
