"""The tiled factor of the shrunk and damped Hessian against the Hessian itself."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mcpmq.errors import DatasetError
from mcpmq.rounding.cholesky import shrunk_cholesky
from mcpmq.rounding.descent import ShrunkHessian
from tests.rounding.oracle import random_layer


@pytest.mark.parametrize(("columns", "padded"), [(1, 1), (63, 63), (64, 64), (65, 65), (200, 256)])
def test_the_factor_multiplies_back_to_the_shrunk_hessian(
    columns: int, padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any number of tiles, in the given order; padding is independent of the other columns."""
    monkeypatch.setattr("mcpmq.rounding.cholesky.TILE_COLUMNS", 64)
    _, inputs = random_layer(1, columns)
    gram = inputs.T @ inputs
    order = torch.cat(
        [torch.randperm(columns, generator=torch.Generator().manual_seed(0)), torch.arange(columns, padded)]
    )

    with ThreadPoolExecutor(2) as pool:
        factor = shrunk_cholesky(gram, order, 0.2, pool)

    unit_upper = factor.unit_upper.triu(1).double() + torch.eye(padded)
    product = unit_upper @ factor.pivots.double().diag() @ unit_upper.T
    mean = gram.diagonal().double().mean()
    expected = torch.zeros(padded, padded, dtype=torch.float64)
    expected[:columns, :columns] = gram.double()[order[:columns]][:, order[:columns]]
    expected = 0.8 * expected + 0.2 * expected.diagonal().diag()
    expected += mean * torch.where(torch.arange(padded) < columns, 0.01, 1e-6).diag()
    assert torch.allclose(product, expected, rtol=1e-4, atol=1e-5 * float(mean))
    rows = torch.randn(padded, 3, generator=torch.Generator().manual_seed(1))
    multiplied = unit_upper @ factor.pivots.double().diag() @ rows.double()
    assert torch.allclose(factor.multiply(rows).double(), multiplied, rtol=1e-4, atol=1e-4 * float(mean))
    hessian = ShrunkHessian.create(gram, 0.2, padded).multiply(torch.eye(padded))
    assert torch.allclose(hessian[order][:, order].double(), expected, atol=1e-5 * float(mean))


def test_shrinkage_increases_until_the_factorization_succeeds() -> None:
    """A slightly indefinite Hessian is shrunk by 0.1 with a warning; a negative definite one is an error."""
    gram = torch.full((40, 40), 100.0) - 5 * torch.eye(40)  # smallest eigenvalue -5
    with ThreadPoolExecutor(1) as pool:
        with pytest.warns(UserWarning, match="a Hessian of 40 columns needed shrinkage by 0.1"):
            factor = shrunk_cholesky(gram, torch.arange(40), 0.01, pool)
        assert factor.pivots.isfinite().all()
        assert (factor.pivots > 0).all()
        with pytest.raises(DatasetError, match="Hessian of 40 columns is not positive definite"):
            shrunk_cholesky(torch.full((40, 40), -100.0) + 200 * torch.eye(40), torch.arange(40), 0.5, pool)
