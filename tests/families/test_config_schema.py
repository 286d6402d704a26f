"""Validation of config.json and preprocessor_config.json."""

import json
from pathlib import Path

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.families.slicing import Slicing


@pytest.mark.parametrize("kind", [PreprocessorConfig, Slicing, Resizing])
def test_a_missing_or_invalid_file_is_rejected(kind: type[PreprocessorConfig], tmp_path: Path) -> None:
    """The error names the file, and for an invalid value the key."""
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        kind.open(tmp_path)

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"patch_size": 257}))
    with pytest.raises(CheckpointError, match="`preprocessor_config.json`: patch_size: .* 256"):
        kind.open(tmp_path)


@pytest.mark.parametrize(("kind", "key"), [(Slicing, "norm_std"), (Resizing, "image_std")])
@pytest.mark.parametrize("value", [[0.5, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5, 0.5]])
def test_standard_deviations_are_three_positive_numbers(
    kind: type[PreprocessorConfig], key: str, value: list[float], tmp_path: Path
) -> None:
    """Another number of channels, and 0, raise CheckpointError."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: value}))

    with pytest.raises(CheckpointError, match=key):
        kind.open(tmp_path)
