"""Tables of structured compression: complete and consistent, or an error."""

import pytest
from pydantic import ValidationError

from mcpmq.compression_tables import Compression, ImagesTable, LayersTable, VocabularyTable

LAYERS = {"remove": ["language.layers.0"], "influence": [0.2], "kl_divergence": 0.1, "answer_tokens": 9}
TABLE = LayersTable.model_validate({**LAYERS, "calibration": "tiny"})


@pytest.mark.parametrize(
    "change",
    [
        {"influence": []},
        {"remove": ["head"]},
        {"remove": []},
        {"remove": ["language.layers.0"] * 2, "influence": [0.1, 0.1]},
        {"answer_tokens": 0},
        {"kl_divergence": None},
        {"kl_divergence": float("nan")},
    ],
)
def test_layers_are_removed_only_with_measured_figures(change: dict[str, object]) -> None:
    """Every removed layer has its influence, and all together the divergence that was measured."""
    with pytest.raises(ValidationError):
        LayersTable.model_validate({**TABLE.model_dump(), **change})
    assert str(TABLE) == "without language.layers.0; mean KLD 0.1000 nats on 9 tokens"


def test_a_table_without_keys_is_an_error() -> None:
    """A table has at least one limit, and names the ones that are given."""
    with pytest.raises(ValidationError, match="at least one of: max_slice_nums"):
        ImagesTable()
    with pytest.raises(ValidationError, match="at least one of: languages"):
        VocabularyTable()
    assert str(ImagesTable(max_slice_nums=3, max_pixels=40000)) == "max_slice_nums 3, max_pixels 40,000"


def test_only_given_tables_replace_those_of_a_recipe() -> None:
    """Tables that are not given are not changed."""
    images = ImagesTable(max_slice_nums=3)
    assert Compression(images=images, layers=TABLE).given == {"images": images, "layers": TABLE}
    assert Compression().given == {}
