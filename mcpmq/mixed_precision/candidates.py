"""The schemes that a format can hold a weight on."""

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FormatName, format_named
from mcpmq.plan import Step, fits
from mcpmq.scheme import GgmlScheme, Scheme, parse_scheme

CANDIDATES: dict[FormatName, tuple[str, ...]] = {
    "gguf": ("int4-g32", "iq4_nl", "q4_k", "q5_0", "q5_k", "q6_k", "int8-g32", "f16"),
    "onnx": ("int4-g128", "int4-g64", "int4-g32", "int4-g32-asym", "int4-g16", "int8-g128", "int8-g32", "f16"),
}
SHORT_BLOCK = 32  # columns; widths grow to these whatever the scheme


def refuse_one_grid(name: FormatName) -> None:
    """Refuse a format in which there is nothing to choose.

    Raises:
        FormatError: it holds one grid for all weights.
    """
    if name not in CANDIDATES:
        raise FormatError(
            f"`{name}` holds one grid for all of its weights: there is no mix to find",
            f"fit one of: {', '.join(CANDIDATES)}",
        )


def candidates(checkpoint: Checkpoint, spec: TensorSpec, name: FormatName) -> list[Scheme | None]:
    """The schemes that the format can hold a weight on, and leaving it as it is."""
    layout, dtype, held = format_named(name), checkpoint.entries[spec.name].torch_dtype, []
    for text in CANDIDATES[name]:
        step = Step(spec, dtype, parse_scheme(text), "")
        if fits(step) and not layout.refuses(step) and not _widens(step):
            held.append(step.scheme)
    return [*held, None]


def _widens(step: Step) -> bool:
    """Whether it would make another weight larger, too: a hidden width grows to whole blocks, here to longer ones."""
    if not isinstance(step.scheme, GgmlScheme) or step.spec.may_grow != "columns":
        return False
    block = step.scheme.block_columns
    return block > SHORT_BLOCK and step.matrix_shape[1] % block != 0
