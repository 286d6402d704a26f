"""Memory and time that are expected, not measured: reckoned from what is held at once, and from recorded runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mcpmq.families.family import Architecture, LanguageShape
from mcpmq.formats import FormatName
from mcpmq.formats.format import LayoutForecast, Runtime
from mcpmq.plan import Plan, Step
from mcpmq.scheme import GgmlScheme, IntegerScheme

LIBRARIES_NBYTES = 260_000_000  # Python with torch, before a weight is read
PIECE_WEIGHTS, PIECE_NBYTES = 1 << 24, 20  # rounded at a time; what one weight of it takes while it is
STRIPE_NBYTES = 45_000_000  # an ONNX weight is laid out in stripes
# Of benchmarks/results/real-size-28.json, on two cores: weights rounded, and bytes written, a second.
ROUNDED = {"integers": 135e6, "K-quants": 36e6}
WRITTEN = {"gguf integers": 249e6, "gguf": 488e6, "onnx": 305e6}
K_QUANTS = ("q4_k", "q5_k", "q6_k")
STATE_NBYTES = 4  # of a number
SIDE = 448  # of an image or slice in pixels, where config.json does not say it
PASS_TOKENS = 512  # of a prompt that are computed at once


@dataclass(frozen=True, slots=True)
class Device:
    """Bytes that the engine will take where the model runs."""

    context: int
    cache: int
    seeing: int  # the vision encoder alone
    reading: int  # the language model alone, the cache of a full context included

    @property
    def at_once(self) -> int:
        """Both loaded together."""
        return self.seeing + self.reading

    @property
    def sequential(self) -> int:
        """The vision encoder looks first and is released before the language model is loaded."""
        return max(self.seeing, self.reading)


def device_of(architecture: Architecture, files: LayoutForecast, context: int) -> Device:
    """Memory while the model runs: weights, the cache of a full context, and what one pass computes with."""
    runtime, shape = files.runtime, architecture.language
    cache = _cache_nbytes(shape, context, runtime)
    sees = sum(file.nbytes for file in files.files if file.component.startswith("vision"))
    reads = sum(file.nbytes for file in files.files if file.component != "model") - sees
    seeing = int(sees * runtime.resident) + _seeing_nbytes(architecture)
    reading = int(reads * runtime.resident) + cache + _reading_nbytes(architecture, runtime)
    return Device(context, cache, seeing, reading)


def _cache_nbytes(shape: LanguageShape, context: int, runtime: Runtime) -> int:
    """Keys and values of a full context; a layer that attends linearly has a state instead."""
    linear = len(shape.linear.layers) if shape.linear else 0
    keys_and_values = 2 * shape.kv_heads * shape.head_width * context * runtime.cache_nbytes
    state = 0
    if shape.linear:
        state = shape.linear.value_heads * shape.linear.key_width * shape.linear.value_width
        state += shape.linear.channels * (shape.linear.kernel - 1)
    return (shape.layers - linear) * keys_and_values + linear * STATE_NBYTES * state


def _seeing_nbytes(architecture: Architecture) -> int:
    """One slice: its attention scores, and the rows of a layer, in float32."""
    shape = architecture.vision
    if shape is None:
        return 0
    patches = ((shape.slice_side or SIDE) // shape.patch) ** 2
    return 4 * patches * (shape.heads * patches + shape.ffn + 4 * shape.hidden)


def _reading_nbytes(architecture: Architecture, runtime: Runtime) -> int:
    """One pass: its logits, and the rows of a layer, in float32."""
    shape = architecture.language
    return 4 * (runtime.pass_logits * shape.vocabulary + PASS_TOKENS * (2 * shape.ffn + shape.hidden))


def weights_of(step: Step) -> int:
    """How many numbers a tensor has."""
    return prod(step.spec.shape)


def _unpacked_nbytes(step: Step) -> int:
    """A weight in memory once it is rounded: a byte a code, and scales of two."""
    if not isinstance(step.scheme, IntegerScheme):
        return step.nbytes
    rows, columns = step.matrix_shape
    return rows * (columns + 2 * step.scheme.groups(columns))


def _packed_nbytes(step: Step) -> int:
    """What codes of 4 bits take a second time, on their way between memory and disk."""
    return step.nbytes if isinstance(step.scheme, IntegerScheme) and step.scheme.bits == 4 else 0


def quantizing_nbytes(plan: Plan) -> int:
    """The libraries, the block that takes the most, and the piece that is being rounded."""
    blocks = plan.blocks.values()
    largest = max(sum(_unpacked_nbytes(one) + _packed_nbytes(one) for one in steps) for steps in blocks)
    piece = PIECE_NBYTES * min(PIECE_WEIGHTS, max(map(weights_of, plan.steps)))
    seeing = 0 if not plan.recipe.looks else max(map(_seeing_steps_nbytes, blocks))
    return LIBRARIES_NBYTES + largest + piece + seeing


def _seeing_steps_nbytes(steps: Sequence[Step]) -> int:
    """Rounding by sight: one Gram matrix for every input that matrices of a block share, a factor, and the block in
    float32. The activations of the samples come on top: their number is not known yet."""
    matrices = [step for step in steps if step.spec.role == "matrix"]
    columns = [step.matrix_shape[1] for step in matrices if not step.name.endswith((".k", ".v", "mlp.up"))]
    floats = 4 * sum(weights_of(step) for step in matrices if "." in step.name)
    return floats + 4 * (sum(width**2 for width in columns) + max(columns, default=0) ** 2)


def exporting_nbytes(plan: Plan, name: FormatName) -> int:
    """The libraries, and one weight as it is read and as it is written."""
    largest = max(_unpacked_nbytes(step) + _packed_nbytes(step) + _laid_out_nbytes(step, name) for step in plan.steps)
    return LIBRARIES_NBYTES + largest


def _laid_out_nbytes(step: Step, name: FormatName) -> int:
    if not isinstance(step.scheme, IntegerScheme):
        return 0 if step.spec.role != "other" else 2 * step.source_nbytes
    if name != "onnx":
        return step.nbytes
    rows, columns = step.matrix_shape
    return 4 * rows * step.scheme.groups(columns) + STRIPE_NBYTES


def rounding_seconds(plan: Plan) -> float | None:
    """To quantize; None where no run of such a recipe was recorded."""
    return sum(map(_rounding_seconds, plan.steps)) if not plan.recipe.looks else None


def _rounding_seconds(step: Step) -> float:
    slow = isinstance(step.scheme, GgmlScheme) and step.scheme.type in K_QUANTS
    return weights_of(step) / ROUNDED["K-quants" if slow else "integers"]


def exporting_seconds(plan: Plan, name: FormatName, nbytes: int) -> float | None:
    """To write so many bytes of a format; None where no run was recorded."""
    packed = sum(step.nbytes for step in plan.steps if isinstance(step.scheme, IntegerScheme))
    rate = WRITTEN.get("gguf integers" if name == "gguf" and packed > nbytes / 2 else name)
    return nbytes / rate if rate else None
