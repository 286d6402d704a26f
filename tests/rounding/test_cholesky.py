"""The tiled factor of the shrunk and damped Hessian against the Hessian itself, in the memory of one matrix."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mcpmq.errors import DatasetError
from mcpmq.rounding.cholesky import shrunk_cholesky
from mcpmq.rounding.hessian import OrderedHessian, ShrunkHessian
from tests.rounding.oracle import random_layer


def _permutation(columns: int, padded: int, seed: int) -> torch.Tensor:
    shuffled = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    return torch.cat([shuffled, torch.arange(columns, padded)])


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(("columns", "padded"), [(1, 1), (63, 63), (64, 64), (65, 65), (200, 256)])
def test_the_factor_multiplies_back_to_the_shrunk_hessian(
    columns: int, padded: int, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any number of tiles and any two orders; padding is independent of the other columns.

    Below the diagonal the Hessian stays in its first order, without shrinkage.
    """
    for name in ("cholesky.TILE_COLUMNS", "hessian.TILE_COLUMNS", "hessian.MOVED_ROWS"):
        monkeypatch.setattr(f"mcpmq.rounding.{name}", 64)
    _, inputs = random_layer(1, columns)
    gram = inputs.T @ inputs
    before, stored, order = gram.clone(), _permutation(columns, padded, 2), _permutation(columns, padded, 0)

    with ThreadPoolExecutor(2) as pool:
        hessian = OrderedHessian.create(gram, stored, pool, overwrite)
        product_of = ShrunkHessian.create(hessian, 0.2).multiply(torch.eye(padded))
        factor = shrunk_cholesky(hessian, order, 0.2, pool)

    assert torch.equal(gram, before) is not (overwrite and padded == columns)
    unit_upper = factor.unit_upper.triu(1).double() + torch.eye(padded)
    product = unit_upper @ factor.pivots.double().diag() @ unit_upper.T
    mean = before.diagonal().double().mean()
    expected = torch.zeros(padded, padded, dtype=torch.float64)
    expected[:columns, :columns] = before.double()
    assert torch.equal(hessian.matrix.tril(-1).double(), expected[stored][:, stored].tril(-1))
    assert torch.equal(hessian.corner(slice(3, 90)).double(), expected[stored][:, stored][3:90, 3:90])
    expected = 0.8 * expected + 0.2 * expected.diagonal().diag()
    expected += mean * torch.where(torch.arange(padded) < columns, 0.01, 1e-6).diag()
    assert torch.allclose(product_of.double(), expected, atol=1e-5 * float(mean))
    assert torch.allclose(product, expected[order][:, order], rtol=1e-4, atol=1e-5 * float(mean))
    rows = torch.randn(padded, 3, generator=torch.Generator().manual_seed(1))
    multiplied = unit_upper @ factor.pivots.double().diag() @ rows.double()
    assert torch.allclose(factor.multiply(rows).double(), multiplied, rtol=1e-4, atol=1e-4 * float(mean))


def test_inputs_are_subtracted_added_and_the_order_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hessian of the other inputs is symmetric; afterwards the matrix is that before, up to rounding errors."""
    monkeypatch.setattr("mcpmq.rounding.hessian.TILE_COLUMNS", 16)
    _, inputs = random_layer(1, 70)
    gram = inputs.T @ inputs
    before, order = gram.clone(), _permutation(70, 70, 0)

    with ThreadPoolExecutor(2) as pool:
        hessian = OrderedHessian.create(gram, order, pool, overwrite=True)
        hessian.add_inputs(inputs[:50], -1, pool)
        found, energy = hessian.matrix.clone(), hessian.energy.clone()
        hessian.add_inputs(inputs[:50], 1, pool)
        hessian.restore(pool)

    expected = (inputs[50:].T @ inputs[50:])[order][:, order]
    atol = 1e-5 * float(before.diagonal().max())
    assert torch.equal(found, found.T)
    assert torch.equal(energy, found.diagonal())
    assert torch.allclose(found, expected, atol=atol)
    assert torch.allclose(gram, before, atol=atol)


def test_a_hessian_of_small_magnitude_is_restored_exactly() -> None:
    """It is multiplied by a power of two, and divided by it again."""
    _, inputs = random_layer(1, 40)
    gram = 2.0**-80 * (inputs.T @ inputs)
    before = gram.clone()

    with ThreadPoolExecutor(1) as pool:
        hessian = OrderedHessian.create(gram, _permutation(40, 40, 1), pool, overwrite=True)
        mean = float(hessian.matrix.diagonal().mean())
        hessian.restore(pool)

    assert 0.5 <= mean < 1
    assert torch.equal(gram, before)


def test_shrinkage_increases_until_the_factorization_succeeds() -> None:
    """A slightly indefinite Hessian is shrunk by 0.1 with a warning; a negative definite one is an error."""
    gram = torch.full((40, 40), 100.0) - 5 * torch.eye(40)  # smallest eigenvalue -5
    negative, order = torch.full((40, 40), -100.0) + 200 * torch.eye(40), torch.arange(40)
    with ThreadPoolExecutor(1) as pool:
        hessians = [OrderedHessian.create(one, order, pool) for one in (gram, negative)]
        with pytest.warns(UserWarning, match="a Hessian of 40 columns needed shrinkage by 0.1"):
            factor = shrunk_cholesky(hessians[0], order, 0.01, pool)
        assert factor.pivots.isfinite().all()
        assert (factor.pivots > 0).all()
        with pytest.raises(DatasetError, match="Hessian of 40 columns is not positive definite"):
            shrunk_cholesky(hessians[1], order, 0.5, pool)
