"""What a model makes of held-out answers, what it weighs and what it takes, and how sure each figure is."""

from mcpmq.evaluate.bootstrap import Estimate
from mcpmq.evaluate.inputs import EncodedSet, encoded
from mcpmq.evaluate.measure import ORIGINAL, UNQUANTIZED, Measurement, measure, measure_original
from mcpmq.evaluate.metrics import NONSQUARE, Change, Difference, changes, differences
from mcpmq.evaluate.record import Record
from mcpmq.evaluate.settings import Settings

__all__ = [
    "NONSQUARE",
    "ORIGINAL",
    "UNQUANTIZED",
    "Change",
    "Difference",
    "EncodedSet",
    "Estimate",
    "Measurement",
    "Record",
    "Settings",
    "changes",
    "differences",
    "encoded",
    "measure",
    "measure_original",
]
