"""ONNX for phones and browsers: three graphs in transformers.js's layout, from the very codes that quantizing made.

`refuses` and `write` make this room a format; graphs are emitted directly, weights stream past.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.formats.format import LayoutForecast
from mcpmq.formats.model_view import Declared
from mcpmq.formats.onnx.block_quant import table_refusal
from mcpmq.formats.onnx.graph import ACCURACY_LEVEL
from mcpmq.plan import Step
from mcpmq.scheme import CodebookScheme, GgmlScheme, IntegerScheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `refuses` and `forecast` work without torch
    from mcpmq.dataset import CalibrationSet
    from mcpmq.quantized_model import Quantized

ALTERNATIVES = "`int8-g32`, `f16` or `keep`"


def refuses(step: Step) -> str | None:
    """Why ONNX cannot hold this weight on its scheme, naming what it can; None if it can."""
    if isinstance(step.scheme, GgmlScheme | CodebookScheme):
        return f"`{step.scheme}` has no ONNX operator; give it `int4-g32`, {ALTERNATIVES} instead"
    if not isinstance(step.scheme, IntegerScheme) or step.spec.role != "table":
        return None
    reason = table_refusal(step.scheme, step.matrix_shape[1])
    return f"{reason}; give it {ALTERNATIVES} instead" if reason else None


def stored_shapes(quantized: "Quantized") -> dict[str, tuple[int, ...]]:
    """[out, in] of every weight that zeros fill up to whole blocks, by common name."""
    from mcpmq.formats.onnx.layout import widened_ffn
    from mcpmq.formats.shapes import changed_shapes

    return changed_shapes(quantized.specs, widened_ffn(quantized))


def write(
    quantized: "Quantized",
    out: Path,
    progress: Progress,
    *,
    accuracy_level: int = ACCURACY_LEVEL,
    npu: "CalibrationSet | None" = None,
) -> dict[str, list[str]]:
    """Write the graphs, their weights and the texts into the empty folder `out`: component -> relative paths.

    `accuracy_level` 0 has activations computed in float32, as torch does: what comparing the two needs. With `npu` the
    vision graph is one that NPUs take, its activations rounded over what images of this set give.
    """
    from mcpmq.formats.onnx.config_files import write_texts
    from mcpmq.formats.onnx.layout import FOLDER, SIGHT, parts_of, write_part, write_static_vision

    folder, written = out / FOLDER, {}
    folder.mkdir()
    for part in parts_of(quantized.architecture):
        if npu and part.component == SIGHT:
            written[SIGHT] = write_static_vision(part, quantized, npu, folder, progress)
        else:
            written[part.component] = write_part(part, quantized, folder, accuracy_level, progress)
    files = {component: one.files for component, one in written.items()}
    return files | {"model": write_texts(quantized, out, written)}


def forecast(model: Declared) -> LayoutForecast:
    """Three graphs, their weights and the texts, to the byte."""
    from mcpmq.formats.onnx.sizes import sized

    return sized(model)
