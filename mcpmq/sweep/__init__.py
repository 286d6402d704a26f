"""Sweeps over checkpoints, recipes, formats and sample sets, on this machine or on a Ray cluster."""

from mcpmq.sweep.results import SweepResult
from mcpmq.sweep.run import SweepOptions, sweep
from mcpmq.sweep.sweep_file import SweepFile

__all__ = ["SweepFile", "SweepOptions", "SweepResult", "sweep"]
