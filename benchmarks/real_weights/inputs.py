"""Write the checkpoints, the sample sets and the token ids for other tools, once."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.real_weights import checkpoint, qwen25, smollm2, texts
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.variants import (
    CALIBRATION_SAMPLES,
    CURVE_SAMPLES,
    QUICK_TEST_SAMPLES,
    TEST_SAMPLES,
    WHISPER_TEST_SAMPLES,
    CalibrationKind,
)
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet

CHECKPOINTS, SETS, TOKEN_COUNTS = (WORK / name for name in ("checkpoints", "sets", "token-counts.json"))
MODEL, PADDED_MODEL, LLAMA, QWEN = (CHECKPOINTS / name for name in ("smollm2", "smollm2-padded", "llama", "qwen25"))


def calibration_set(samples: int, kind: CalibrationKind = "text") -> Path:
    """Return the folder of a calibration set."""
    return SETS / (f"calibration-{samples}" if kind == "text" else f"calibration-{kind}-{samples}")


def test_set(samples: int) -> Path:
    """Return the folder of a test set."""
    return SETS / f"test-{samples}"


def write_inputs() -> dict[int, int]:
    """Write all inputs unless that is done; return the tokens of every calibration set by its number of samples."""
    if not LLAMA.is_dir():
        reader = smollm2.open_gguf()
        weights = smollm2.read_weights(reader)
        checkpoint.write_qwen2vl(weights, reader, MODEL)
        checkpoint.write_qwen2vl(checkpoint.padded(weights), reader, PADDED_MODEL, checkpoint.PADDED)
        checkpoint.write_llama(weights, reader, LLAMA)
    sizes = sorted({CALIBRATION_SAMPLES, *CURVE_SAMPLES})
    counts = read_token_counts()
    if not (counts.keys() >= {*sizes} and test_set(TEST_SAMPLES).is_dir()):
        tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        tests = TEST_SAMPLES, QUICK_TEST_SAMPLES, WHISPER_TEST_SAMPLES
        texts.write_sets(tokenizer, sizes, tests, SETS)
        (LLAMA / "tokens.json").write_text(json.dumps(encode_set(calibration_set(CALIBRATION_SAMPLES), MODEL)))
        counts = {0: 0} | {size: sum(map(len, encode_set(calibration_set(size), MODEL))) for size in sizes}
        TOKEN_COUNTS.write_text(json.dumps(counts))
    return counts


def write_qwen() -> dict[int, int]:
    """Write the checkpoint of Qwen unless that is done; return the tokens of its calibration sets by their samples.

    The texts are those of the other models, with other tokens.
    """
    write_inputs()
    if not QWEN.is_dir():
        reader = qwen25.open_gguf()
        checkpoint.write_qwen2vl(qwen25.read_weights(reader), reader, QWEN, qwen25.SHAPE)
    return {0: 0, CALIBRATION_SAMPLES: sum(map(len, encode_set(calibration_set(CALIBRATION_SAMPLES), QWEN)))}


def read_token_counts() -> dict[int, int]:
    """Return the tokens of the calibration sets that are written, by their number of samples."""
    if not TOKEN_COUNTS.is_file():
        return {}
    return {int(size): count for size, count in json.loads(TOKEN_COUNTS.read_text()).items()}


def encode_set(folder: Path, model: Path) -> list[list[int]]:
    """Return the tokens of every sample as mcpmq encodes them for a checkpoint."""
    encode = Checkpoint.open(model).family.open_processor(model).encode
    samples = SampleSet.open(folder).samples
    return [encode(one.id, None, one.prompt, one.answer).tokens.tolist() for one in samples]
