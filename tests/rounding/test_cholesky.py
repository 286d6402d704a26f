"""The factor of a Gram matrix, in tiles, against the matrix itself."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mcpmq.errors import CalibrationError
from mcpmq.rounding.cholesky import factored
from tests.rounding.oracle import sample_layer


@pytest.mark.parametrize(("columns", "padded"), [(1, 1), (63, 63), (64, 64), (65, 65), (200, 256)])
def test_the_factor_multiplies_back_to_the_damped_matrix(
    columns: int, padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the tiles, in the order asked for; columns that see nothing stand alone."""
    monkeypatch.setattr("mcpmq.rounding.cholesky.TILE", 64)
    _, inputs = sample_layer(1, columns)
    gram = inputs.T @ inputs
    order = torch.cat(
        [torch.randperm(columns, generator=torch.Generator().manual_seed(0)), torch.arange(columns, padded)]
    )

    with ThreadPoolExecutor(2) as pool:
        factor = factored(gram, order, pool)

    unit = factor.unit.triu(1).double() + torch.eye(padded)
    product = unit @ factor.pivots.double().diag() @ unit.T
    mean = gram.diagonal().double().mean()
    expected = torch.eye(padded, dtype=torch.float64) * mean
    expected[:columns, :columns] = gram.double()[order[:columns]][:, order[:columns]]
    expected += 0.01 * mean * torch.eye(padded)
    assert torch.allclose(product, expected, rtol=1e-4, atol=1e-5 * float(mean))


def test_what_float32_cannot_factor_is_damped_more() -> None:
    """A matrix that rounding made slightly indefinite still has a factor; one that means nothing has none."""
    gram = torch.full((40, 40), 100.0) - 5 * torch.eye(40)  # smallest eigenvalue -5
    with ThreadPoolExecutor(1) as pool:
        with pytest.warns(UserWarning, match="damped by 0.1"):
            factor = factored(gram, torch.arange(40), pool)
        assert factor.pivots.isfinite().all()
        assert (factor.pivots > 0).all()
        with pytest.raises(CalibrationError, match="40 columns has no factor"):
            factored(torch.full((40, 40), -100.0) + 200 * torch.eye(40), torch.arange(40), pool)
