"""Log-mel spectrograms, compared with `WhisperFeatureExtractor` of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from mcpmq.errors import CheckpointError
from mcpmq.families.log_mel import LogMel
from tests.audio_tools import noise

# Whisper's own code, and transformers with torch, compute the spectrum in float32.
FLOAT32_TOLERANCE = 5e-5


@pytest.mark.parametrize(("bins", "seconds"), [(80, 0.01), (80, 1.0), (80, 2.00006), (128, 0.5), (32, 1.2345)])
def test_features_are_those_of_transformers(bins: int, seconds: float) -> None:
    """Equal within 1e-6 to the computation in NumPy, and within the rounding of float32 to that in torch."""
    samples = noise(seconds)
    extractor = WhisperFeatureExtractor(feature_size=bins)
    padded = np.pad(samples, (0, extractor.n_samples - len(samples)))

    features = LogMel(feature_size=bins).features(samples)

    frames, (in_numpy,) = features.shape[1], extractor._np_extract_fbank_features(padded[None], "cpu")
    options: dict[str, Any] = {"sampling_rate": 16_000, "return_attention_mask": True, "return_tensors": "np"}
    in_torch = extractor(samples, **options)
    assert frames == in_torch["attention_mask"].sum()
    np.testing.assert_allclose(features, in_numpy[:, :frames], rtol=0, atol=1e-6)
    np.testing.assert_allclose(features, in_torch["input_features"][0][:, :frames], rtol=0, atol=FLOAT32_TOLERANCE)


def test_silence_has_the_smallest_value() -> None:
    """10 powers of ten below the loudest value that is possible: (-10 + 4) / 4."""
    np.testing.assert_array_equal(LogMel().features(np.zeros(1600, np.float32)), np.full((80, 10), -1.5, np.float32))


def test_settings_are_read_from_the_file_of_transformers(tmp_path: Path) -> None:
    """The keys of processor_config.json take precedence; without a file the defaults of transformers hold."""
    assert LogMel.open(tmp_path) == LogMel()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 128, "chunk_length": 300}))
    assert (LogMel.open(tmp_path).feature_size, LogMel.open(tmp_path).max_samples) == (128, 4_800_000)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": {"feature_size": 64}}))
    assert LogMel.open(tmp_path).feature_size == 64


@pytest.mark.parametrize(
    "settings",
    [{"hop_length": 80}, {"n_fft": 512}, {"sampling_rate": 8000}, {"dither": 1e-4}],
)
def test_other_settings_are_rejected(settings: dict[str, Any], tmp_path: Path) -> None:
    """They change the features."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        LogMel.open(tmp_path)
