"""Evaluation of a model in its engine: accuracy, size, memory and speed, with confidence intervals."""

from mcpmq.evaluate.inputs import EncodedInputs, encode_samples, inputs_of
from mcpmq.evaluate.measure import measure, measure_original
from mcpmq.evaluate.metrics import changes, differences, vocabulary_differences
from mcpmq.evaluate.sample_size import (
    calibration_warnings,
    distribution_notes,
    evaluation_warnings,
    small_group_notes,
)
from mcpmq.evaluate.schema import (
    ENGINE_BASELINE,
    NONSQUARE,
    ORIGINAL,
    Change,
    Difference,
    Estimate,
    Measurement,
    Record,
    TaskScores,
    VocabularyDifference,
)
from mcpmq.evaluate.settings import Settings

__all__ = [
    "ENGINE_BASELINE",
    "NONSQUARE",
    "ORIGINAL",
    "Change",
    "Difference",
    "EncodedInputs",
    "Estimate",
    "Measurement",
    "Record",
    "Settings",
    "TaskScores",
    "VocabularyDifference",
    "calibration_warnings",
    "changes",
    "differences",
    "distribution_notes",
    "encode_samples",
    "evaluation_warnings",
    "inputs_of",
    "measure",
    "measure_original",
    "small_group_notes",
    "vocabulary_differences",
]
