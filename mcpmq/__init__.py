"""Quantize multimodal language models and measure the accuracy loss.

`convert` quantizes, exports and evaluates a checkpoint from paths; `quantize`, `export` and `evaluate` are its steps:

    import mcpmq

    mcpmq.convert("CHECKPOINT", "OUT", bits=4, formats=["gguf"], calibration="calibration/starter")
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.compression import compress
    from mcpmq.compression_tables import Compression
    from mcpmq.convert import convert
    from mcpmq.dataset import SampleSet
    from mcpmq.errors import McpmqError
    from mcpmq.evaluate import Settings
    from mcpmq.export import export
    from mcpmq.mixed_precision import Budget
    from mcpmq.plan import Plan, make_plan
    from mcpmq.quantize import quantize
    from mcpmq.quantized_model import QuantizedModel
    from mcpmq.recipe import Recipe
    from mcpmq.report import Report
    from mcpmq.report.evaluation import evaluate

# Read by the libraries when they are imported. ONNX Runtime would contact a telemetry host and write to ~/.cache.
os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1")

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Budget",
    "Checkpoint",
    "Compression",
    "McpmqError",
    "Plan",
    "QuantizedModel",
    "Recipe",
    "Report",
    "SampleSet",
    "Settings",
    "compress",
    "convert",
    "evaluate",
    "export",
    "make_plan",
    "quantize",
]

_MODULES = {
    "Artifact": "artifact",
    "Budget": "mixed_precision",
    "Checkpoint": "checkpoint",
    "Compression": "compression_tables",
    "McpmqError": "errors",
    "Plan": "plan",
    "QuantizedModel": "quantized_model",
    "Recipe": "recipe",
    "Report": "report",
    "SampleSet": "dataset",
    "Settings": "evaluate",
    "compress": "compression",
    "convert": "convert",
    "evaluate": "report.evaluation",
    "export": "export",
    "make_plan": "plan",
    "quantize": "quantize",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import mcpmq` does not import torch (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module `mcpmq` has no attribute `{name}`")
    return getattr(import_module(f"mcpmq.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keep `mcpmq.convert` and others a function: importing the submodule of that name would replace it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
