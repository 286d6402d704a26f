"""Statistics of inputs: the largest magnitude, the merge of two sets, and the check of their columns."""

import pytest
import torch

from mcpmq.errors import DatasetError
from mcpmq.rounding.stats import InputStats, require_stats
from tests.rounding.oracle import input_stats

ONE, OTHER = torch.tensor([[1.0, -5.0, 2.0], [3.0, 4.0, -2.5]]), torch.tensor([[-7.0, 4.5, 1.0]])


def test_the_largest_magnitude_may_be_negative() -> None:
    """The extreme of a column is at its minimum or at its maximum."""
    assert input_stats(ONE).abs_max.tolist() == [3, 5, 2.5]


def test_merged_statistics_are_those_of_all_inputs() -> None:
    """Sums and counts are added; the range covers both."""
    merged, whole = input_stats(ONE) + input_stats(OTHER), input_stats(torch.cat([ONE, OTHER]))

    for name in ("gram", "abs_sum", "minimum", "maximum"):
        assert torch.equal(getattr(merged, name), getattr(whole, name))
    assert merged.token_counts == {"vision": 0, "text": 3, "answer": 0, "audio": 0}
    assert merged.total_weight == 3


@pytest.mark.parametrize(("stats", "found"), [(None, "none"), (input_stats(ONE), "3 columns")])
def test_statistics_of_other_columns_are_an_error(stats: InputStats | None, found: str) -> None:
    """The error has the method and both numbers of columns; statistics that fit are returned."""
    with pytest.raises(DatasetError, match=rf"^`gptq` needs input statistics of 4 columns, got {found}$"):
        require_stats(stats, 4, "gptq")

    fitting = input_stats(OTHER)
    assert require_stats(fitting, 3, "gptq") is fitting
