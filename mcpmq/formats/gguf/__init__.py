"""GGUF: one file for the language model and one `mmproj` file for the vision encoder, as llama.cpp loads them.

Format: docs/gguf.md in the ggml repository. Weights are streamed from the quantized artifact, one tensor at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.artifact import Artifact
from mcpmq.errors import FormatError
from mcpmq.formats.format import FLOAT_SCHEMES, FileProvenance, FilesForecast, Format, integer_schemes
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme
from mcpmq.system.ggml_library import PINNED_VERSION
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # plans are checked and forecast without torch
    from mcpmq.quantized_model import QuantizedModel

BLOCK_COLUMNS = 32  # block size of Q4_0 and Q8_0, the types that store integer schemes
GGML_TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "iq4_nl", "q4_k", "q5_k", "q6_k", "iq4_xs", "q3_k", "q2_k", "iq3_s")


def _shape_limit(tensor: TensorPlan) -> str | None:
    if not isinstance(tensor.scheme, IntegerScheme) or tensor.spec.paddable_axis == "columns":
        return None
    columns = tensor.adjacent_columns
    if columns % BLOCK_COLUMNS == 0:
        return None
    return f"{columns} columns are not a multiple of the block size {BLOCK_COLUMNS}; use `f16`, `f32` or `keep`"


def _check_model(tensors: Sequence[TensorPlan]) -> None:
    """Check that the same matrix has one type in all experts of a layer: they are one tensor of the file.

    Raises:
        FormatError: it has two.
    """
    first: dict[str, TensorPlan] = {}
    for tensor in filter(lambda tensor: ".experts." in tensor.name, tensors):
        layer, _, rest = tensor.name.partition(".experts.")
        other = first.setdefault(f"{layer}.{rest.partition('.')[2]}", tensor)
        if (tensor.scheme, tensor.dtype) != (other.scheme, other.dtype):
            raise FormatError(
                f"`gguf` cannot store `{tensor.name}` as `{tensor.scheme or tensor.dtype}`: the experts of a layer are"
                f" one tensor, and `{other.name}` is `{other.scheme or other.dtype}`",
                f'use one scheme for all, for example `"{layer}.experts.*" = ...` last in the recipe',
            )


def _padded_shapes(quantized: "QuantizedModel") -> dict[str, tuple[int, ...]]:
    from mcpmq.formats.gguf.tensors import padded_intermediate_size
    from mcpmq.formats.padding import padded_shapes

    return padded_shapes(quantized.specs, padded_intermediate_size(quantized))


def _write(quantized: "QuantizedModel", out: Path, progress: Progress) -> dict[str, list[str]]:
    from mcpmq.formats.gguf.writer import write_files

    return write_files(quantized, out, progress)


def _forecast(model: ModelView) -> FilesForecast:
    from mcpmq.formats.gguf.sizes import forecast_files

    return forecast_files(model)


def _split(artifact: Artifact, out: Path, max_nbytes: int) -> dict[str, list[str]]:
    from mcpmq.formats.gguf.splitting import split_files

    return split_files(artifact, out, max_nbytes)


def _provenance(artifact: Artifact) -> Iterator[FileProvenance]:
    from mcpmq.formats.gguf.files import read_provenance

    return read_provenance(artifact)


FORMAT = Format(
    name="gguf",
    requires=("xllamacpp",),
    engine="gguf",
    min_runtime=f"llama.cpp b{PINNED_VERSION.rpartition('.')[2]}",
    schemes=(*integer_schemes((4, 8), (32, 64, 128, 256, None)), *GGML_TYPES, *FLOAT_SCHEMES),
    limits=f"ggml's integer types have no zero point, and one scale for each block of {BLOCK_COLUMNS} columns",
    recipes={4: "calibrated-gguf-int4", 8: "phone-int8"},
    write=_write,
    forecast=_forecast,
    shape_limit=_shape_limit,
    check_model=_check_model,
    padded_shapes=_padded_shapes,
    split=_split,
    provenance=_provenance,
)
