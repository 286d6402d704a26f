"""ONNX for phones and browsers: three graphs in transformers.js's layout, from the very codes that quantizing made.

`refuses` and `write` make this room a format; graphs are emitted directly, weights stream past.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.formats.onnx.blocks import table_refusal
from mcpmq.formats.onnx.graph import ACCURACY_LEVEL
from mcpmq.plan import Step
from mcpmq.progress import Progress
from mcpmq.recipe import GgmlScheme, IntegerScheme

if TYPE_CHECKING:  # `refuses` works without torch
    from mcpmq.quantized import Quantized

ALTERNATIVES = "`int8-g32`, `f16` or `keep`"


def refuses(step: Step) -> str | None:
    """Why ONNX cannot hold this weight on its scheme, naming what it can; None if it can."""
    if isinstance(step.scheme, GgmlScheme):
        return f"ggml's blocks have no ONNX operator; give it `int4-g32`, {ALTERNATIVES} instead"
    if not isinstance(step.scheme, IntegerScheme) or step.spec.role != "table":
        return None
    reason = table_refusal(step.scheme, step.matrix_shape[1])
    return f"{reason}; give it {ALTERNATIVES} instead" if reason else None


def write(
    quantized: "Quantized", out: Path, progress: Progress, *, accuracy_level: int = ACCURACY_LEVEL
) -> dict[str, list[str]]:
    """Write the graphs, their weights and the texts into the empty folder `out`: component -> relative paths.

    `accuracy_level` 0 has activations computed in float32, as torch does: what comparing the two needs.
    """
    from mcpmq.formats.onnx.layout import FOLDER, parts_of, write_part, write_texts

    (out / FOLDER).mkdir()
    written = {
        part.component: write_part(part, quantized, out / FOLDER, accuracy_level, progress)
        for part in parts_of(quantized.architecture)
    }
    files = {component: one.files for component, one in written.items()}
    return files | {"model": write_texts(quantized, out, written)}
