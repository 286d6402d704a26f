"""Write the checkpoint with the trained vision encoder, and sample sets of images and texts, once."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.real_weights import checkpoint, smollm2
from benchmarks.real_weights.artifacts import variant_folder
from benchmarks.real_weights.inputs import CHECKPOINTS, LLAMA, SETS, calibration_set, test_set, write_inputs
from benchmarks.real_weights.tower.image_sets import write_image_set
from benchmarks.real_weights.tower.trained import WEIGHTS, trained_vision
from benchmarks.real_weights.variants import (
    CALIBRATION_IMAGES,
    CALIBRATION_SAMPLES,
    IMAGE_VARIANTS,
    QUICK_TEST_SAMPLES,
    TEST_IMAGES,
    WITH_IMAGES,
    CalibrationKind,
)
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.system.file_hash import file_sha256

MODEL, TEST = CHECKPOINTS / WITH_IMAGES, SETS / f"test-images-{TEST_IMAGES}"


def write_image_inputs() -> dict[CalibrationKind, int]:
    """Write all inputs unless that is done; return the tokens of the calibration sets."""
    texts = write_inputs()
    if not MODEL.is_dir() or (MODEL / "tower.sha256").read_text() != file_sha256(WEIGHTS):
        write_model()
    for kind in ("images", "both"):
        folder = calibration_set(CALIBRATION_IMAGES, kind)
        if not folder.is_dir():
            more = read_lines(calibration_set(CALIBRATION_SAMPLES)) if kind == "both" else []
            write_image_set(folder, CALIBRATION_IMAGES, False, more)
    if not TEST.is_dir():
        write_image_set(TEST, TEST_IMAGES, True, read_lines(test_set(QUICK_TEST_SAMPLES)))
    images, both = (count_tokens(calibration_set(CALIBRATION_IMAGES, kind)) for kind in ("images", "both"))
    return {"text": texts[CALIBRATION_SAMPLES], "images": images, "both": both}


def write_model() -> None:
    """Write the checkpoint, and delete artifacts of one with another encoder.

    The language model is that of the other measurements.
    """
    for variant in IMAGE_VARIANTS:
        shutil.rmtree(variant_folder(variant), ignore_errors=True)
    weights = load_file(LLAMA / "model.safetensors")
    checkpoint.write_qwen2vl(weights, smollm2.open_gguf(), MODEL, vision=trained_vision(smollm2.HIDDEN))
    (MODEL / "tower.sha256").write_text(file_sha256(WEIGHTS))


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def count_tokens(folder: Path) -> int:
    """Return the tokens of a set, those of images included."""
    encode = Checkpoint.open(MODEL).family.open_processor(MODEL).encode_turns
    return sum(len(encode(one.id, one.turns).tokens) for one in SampleSet.open(folder).samples)
