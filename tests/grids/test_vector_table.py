"""The table of vectors and the codes of its columns."""

import numpy as np

from mcpmq.grids.vector_table import VALUES, join_codes, split_codes, vector_table


def test_the_table_has_512_vectors_of_odd_magnitudes() -> None:
    """All are different, from 1 to 15."""
    vectors = vector_table().vectors

    assert vectors.shape == (512, 4)
    assert set(vectors.flatten().tolist()) == {1, 3, 5, 7, 9, 11, 13, 15}
    assert len(np.unique(vectors, axis=0)) == 512


def test_vectors_and_signs_are_codes_of_their_columns() -> None:
    """The values of the codes are the signed magnitudes, and the codes give the same vectors back."""
    random = np.random.default_rng(0)
    indices, negative = random.integers(0, 512, (3, 64)), random.random((3, 256)) < 0.5

    codes = join_codes(indices, negative)

    magnitudes = vector_table().vectors[indices].reshape(3, 256)
    np.testing.assert_array_equal(np.array(VALUES)[codes], np.where(negative, -magnitudes, magnitudes))
    found, signs = split_codes(codes)
    np.testing.assert_array_equal(found, indices)
    np.testing.assert_array_equal(signs, negative)


def test_other_magnitudes_have_the_nearest_vector() -> None:
    """By brute force over all 4096 vectors of odd magnitudes."""
    table = vector_table()
    points = np.array(np.meshgrid(*[np.arange(1, 16, 2)] * 4, indexing="ij")).reshape(4, -1).T[:, ::-1]

    distances = ((points[:, None] - table.vectors) ** 2).sum(2)

    np.testing.assert_array_equal(distances[np.arange(4096), table.nearest], distances.min(1))
