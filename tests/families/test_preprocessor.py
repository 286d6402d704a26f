"""What is read of preprocessor_config.json, whatever family it is of."""

import json
from pathlib import Path

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.preprocessor import Preprocessor
from mcpmq.families.qwenvl_inputs import Resizing
from mcpmq.families.slicing import Slicing


@pytest.mark.parametrize("kind", [Preprocessor, Slicing, Resizing])
def test_a_missing_or_broken_file_is_named(kind: type[Preprocessor], tmp_path: Path) -> None:
    """And in a broken one the key."""
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        kind.open(tmp_path)

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"patch_size": 257}))
    with pytest.raises(CheckpointError, match="`preprocessor_config.json`: patch_size: .* 256"):
        kind.open(tmp_path)


@pytest.mark.parametrize(("kind", "key"), [(Slicing, "norm_std"), (Resizing, "image_std")])
@pytest.mark.parametrize("value", [[0.5, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5, 0.5]])
def test_a_deviation_is_one_positive_number_a_colour(
    kind: type[Preprocessor], key: str, value: list[float], tmp_path: Path
) -> None:
    """Pixels are divided by it."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: value}))

    with pytest.raises(CheckpointError, match=key):
        kind.open(tmp_path)
