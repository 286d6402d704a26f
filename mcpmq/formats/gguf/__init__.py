"""GGUF: a language model and an `mmproj` file for llama.cpp, streamed from the quantized artifact.

Format: docs/gguf.md in the sources of ggml.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.formats.format import LayoutForecast
from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.scheme import CodebookScheme, IntegerScheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `refuses` and `forecast` are asked without torch
    from mcpmq.quantized_model import Quantized

BLOCK_COLUMNS = 32  # of Q4_0 and Q8_0, the types that integer grids become
ALTERNATIVES = "`int4-g32`, `int8-g32`, wider symmetric groups, `q4_k` and its like, `f16`, or `keep`"


def refuses(step: Step) -> str | None:
    """Why llama.cpp cannot hold this weight on its scheme; None if it can."""
    scheme = step.scheme
    if isinstance(scheme, CodebookScheme):
        return f"ggml has no `{scheme}`; it can hold {ALTERNATIVES}"
    if not isinstance(scheme, IntegerScheme):
        return None
    if not scheme.symmetric:
        return f"its integer types have no zero point of this kind; it can hold {ALTERNATIVES}, or `q4_1`"
    if scheme.group_size is not None and scheme.group_size % BLOCK_COLUMNS:
        return f"its blocks share a scale over {BLOCK_COLUMNS} columns; it can hold {ALTERNATIVES}"
    columns = step.matrix_shape[1]
    if columns % BLOCK_COLUMNS and step.spec.may_grow != "columns":
        return f"{columns} columns are no whole blocks of {BLOCK_COLUMNS}; it can hold `f16`, `f32` or `keep`"
    return None


def stored_shapes(quantized: "Quantized") -> dict[str, tuple[int, ...]]:
    """[out, in] of every weight that zeros fill up to whole blocks, by common name."""
    from mcpmq.formats.gguf.tensors import widened_ffn
    from mcpmq.formats.shapes import changed_shapes

    return changed_shapes(quantized.specs, widened_ffn(quantized))


def write(quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write both files into `out`, one tensor in memory at a time.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    from mcpmq.formats.gguf.writer import write_files

    return write_files(quantized, out, progress)


def forecast(model: Declared) -> LayoutForecast:
    """Both files, to the byte.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    from mcpmq.formats.gguf.sizes import sized

    return sized(model)
