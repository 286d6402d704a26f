"""Estimate memory from the data that is held at the same time, and time from recorded runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mcpmq.families.family import Architecture
from mcpmq.families.language_shape import LanguageShape
from mcpmq.families.residual import LAYER_OUTPUT, stream_reader
from mcpmq.formats import FormatName
from mcpmq.formats.format import FilesForecast, RuntimeMemory
from mcpmq.formats.kv_cache import cached_per_token
from mcpmq.plan import Plan, TensorPlan
from mcpmq.scheme import GgmlScheme, IntegerScheme

LIBRARIES_NBYTES = 260_000_000  # Python with torch, before a weight is read
CHUNK_WEIGHTS, CHUNK_NBYTES_PER_WEIGHT = 1 << 24, 20  # weights rounded at a time; working memory for each
TARGET_WEIGHTS = 1 << 27  # of a matrix, rounded at a time by GPTQ
HELD_OUT_TOKENS = 2048  # of every distinct input, and as many that wait for their Hessian
ROUNDED_ROWS, ROUNDED_WEIGHTS, ROUNDING_NBYTES_PER_WEIGHT = 1024, 1 << 22, 100  # by two threads with GPTQ
STRIPE_NBYTES = 45_000_000  # buffer for the stripes of an ONNX weight
# Weights per second of quantizing, and bytes per second of writing, on two cores: benchmarks/results/real-size-28.json.
# `iq3_s`: `python -m benchmarks.kernels`.
QUANTIZE_RATES = {"integers": 135e6, "K-quants": 36e6, "iq3_s": 6e6}
EXPORT_RATES = {"gguf integers": 249e6, "gguf": 488e6, "onnx": 305e6}
K_QUANTS = ("q4_k", "q5_k", "q6_k", "iq4_xs", "q3_k", "q2_k")
STATE_NBYTES = 4  # per element of a linear-attention state
DEFAULT_IMAGE_SIZE = 448  # pixels of an image or slice if config.json has no size
PREFILL_BATCH_TOKENS = 512  # prompt tokens per pass


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Estimated memory of the engine on the device, in bytes."""

    context: int  # tokens
    kv_cache_nbytes: int
    vision_nbytes: int  # the vision encoder alone
    language_nbytes: int  # the language model alone, with the cache of a full context

    @property
    def concurrent_nbytes(self) -> int:
        """Bytes with the vision encoder and the language model loaded together."""
        return self.vision_nbytes + self.language_nbytes

    @property
    def sequential_nbytes(self) -> int:
        """Bytes if the vision encoder is freed before the language model loads."""
        return max(self.vision_nbytes, self.language_nbytes)


def device_memory(architecture: Architecture, files: FilesForecast, context: int) -> DeviceMemory:
    """Estimate weights, KV cache and activations of a model with a context of this many tokens."""
    runtime = files.runtime
    cache_nbytes = language_cache_nbytes(architecture.language, context, runtime)
    vision_files = sum(file.nbytes for file in files.files if file.component.startswith("vision"))
    others = ("model", "genai")  # files without weights
    language_files = sum(file.nbytes for file in files.files if file.component not in others) - vision_files
    vision_nbytes = int(vision_files * runtime.resident_ratio) + _vision_activation_nbytes(architecture)
    language_nbytes = int(language_files * runtime.resident_ratio) + cache_nbytes
    language_nbytes += _language_activation_nbytes(architecture, runtime)
    return DeviceMemory(context, cache_nbytes, vision_nbytes, language_nbytes)


def language_cache_nbytes(shape: LanguageShape, context: int, runtime: RuntimeMemory) -> int:
    """Return the bytes of keys and values, and of the states of linear attention and convolutions."""
    kv_nbytes = sum(cached_per_token(shape)) * context * runtime.kv_cache_element_nbytes
    linear, convolution = shape.linear_attention, shape.short_convolution
    if convolution:
        state = shape.hidden_size * (convolution.kernel_size - 1)
        return kv_nbytes + len(convolution.layers) * STATE_NBYTES * state
    if linear is None:
        return kv_nbytes
    state = linear.num_value_heads * linear.key_head_dim * linear.value_head_dim
    state += linear.conv_channels * (linear.conv_kernel_size - 1)
    return kv_nbytes + len(linear.layers) * STATE_NBYTES * state


def _vision_activation_nbytes(architecture: Architecture) -> int:
    """Return the bytes of attention scores and hidden states of one layer for one slice, in float32."""
    shape = architecture.vision
    if shape is None:
        return 0
    patches = ((shape.slice_resolution or DEFAULT_IMAGE_SIZE) // shape.patch_size) ** 2
    return 4 * patches * (shape.num_heads * patches + shape.intermediate_size + 4 * shape.hidden_size)


def _language_activation_nbytes(architecture: Architecture, runtime: RuntimeMemory) -> int:
    """Return the bytes of logits and of hidden states of one layer for one prefill pass, in float32."""
    shape = architecture.language
    hidden = PREFILL_BATCH_TOKENS * (2 * shape.intermediate_size + shape.hidden_size)
    return 4 * (runtime.logits_per_pass * shape.vocab_size + hidden)


def num_weights(tensor: TensorPlan) -> int:
    """Return the number of elements of a tensor."""
    return prod(tensor.spec.shape)


def _unpacked_nbytes(tensor: TensorPlan) -> int:
    """Return the bytes of a quantized weight in memory: one per code, two per scale."""
    if not isinstance(tensor.scheme, IntegerScheme):
        return tensor.nbytes
    rows, columns = tensor.matrix_shape
    return rows * (columns + 2 * tensor.scheme.num_groups(columns))


def _packed_nbytes(tensor: TensorPlan) -> int:
    """Return the bytes of the packed copy of 4-bit codes."""
    return tensor.nbytes if isinstance(tensor.scheme, IntegerScheme) and tensor.scheme.bits == 4 else 0


def quantize_peak_rss_bytes(plan: Plan) -> int:
    """Estimate the peak of quantizing; of a calibration without the images and hidden states of its samples."""
    block_nbytes = _staged_calibration_nbytes if plan.recipe.has_model_targets else _calibration_nbytes
    calibrated = max(map(block_nbytes, plan.blocks.values())) if plan.recipe.needs_calibration else 0
    return max(uncalibrated_peak_rss_bytes(plan), LIBRARIES_NBYTES + calibrated)


def uncalibrated_peak_rss_bytes(plan: Plan) -> int:
    """Estimate the peak of rounding to nearest: libraries, the largest block, and the working memory."""
    largest = max(sum(_unpacked_nbytes(one) + _packed_nbytes(one) for one in block) for block in plan.blocks.values())
    working = CHUNK_NBYTES_PER_WEIGHT * min(CHUNK_WEIGHTS, max(map(num_weights, plan.tensors)))
    return LIBRARIES_NBYTES + largest + working


def _calibration_nbytes(tensors: Sequence[TensorPlan]) -> int:
    """Return the bytes of the Hessians and the statistics of a block, and of its weights in float32 or its codes.

    A factor takes the memory of its Hessian. Images and hidden states are not included, because a plan has no samples.
    """
    matrices = [tensor for tensor in tensors if tensor.spec.role == "matrix"]
    columns = [tensor.matrix_shape[1] for tensor in matrices if not tensor.name.endswith((".k", ".v", "mlp.up"))]
    hessians = sum(4 * (count**2 + 2 * HELD_OUT_TOKENS * count) for count in columns)
    weights = sum(map(num_weights, matrices))
    rounding = weights + ROUNDING_NBYTES_PER_WEIGHT * min(ROUNDED_ROWS * max(columns, default=0), ROUNDED_WEIGHTS)
    return hessians + max(4 * weights if any("." in tensor.name for tensor in matrices) else 0, rounding)


def _staged_calibration_nbytes(tensors: Sequence[TensorPlan]) -> int:
    """Return the bytes of a block in float32, and of the largest stage of its matrices.

    A stage has a Hessian, whose factor takes its memory, the products of the drift, and held-out inputs; while the
    samples pass also inputs that the Hessian does not have yet. While a matrix is rounded, there are its stored weights
    and its target, and of all matrices codes; after the last stage of a layer no others.
    """
    matrices = [tensor for tensor in tensors if tensor.spec.role == "matrix"]
    names = {tensor.name for tensor in tensors}
    weights = sum(num_weights(tensor) for tensor in matrices if "." in tensor.name)
    stages = [0]
    for tensor in matrices:
        rows, columns = tensor.matrix_shape
        reader = stream_reader(tensor.name, names)
        drift = columns if reader is None else rows
        inputs = 4 * HELD_OUT_TOKENS * (columns + drift)
        statistics = 4 * (columns**2 + columns * drift) + inputs
        rounded = ROUNDING_NBYTES_PER_WEIGHT * min(ROUNDED_ROWS * columns, ROUNDED_WEIGHTS)
        rounding = 6 * min(rows * columns, TARGET_WEIGHTS) + rounded
        copies = weights if reader == LAYER_OUTPUT else 5 * weights
        stages.append(statistics + max(4 * weights + inputs, copies + rounding))
    return max(stages)


def export_peak_rss_bytes(plan: Plan, name: FormatName) -> int:
    """Estimate the peak of an export: libraries, and the largest weight as it is read and written."""
    largest = max(_unpacked_nbytes(one) + _packed_nbytes(one) + _written_nbytes(one, name) for one in plan.tensors)
    return LIBRARIES_NBYTES + largest


def _written_nbytes(tensor: TensorPlan, name: FormatName) -> int:
    if not isinstance(tensor.scheme, IntegerScheme):
        return 0 if tensor.spec.role != "other" else 2 * tensor.source_nbytes
    if name != "onnx":
        return tensor.nbytes
    rows, columns = tensor.matrix_shape
    return 4 * rows * tensor.scheme.num_groups(columns) + STRIPE_NBYTES


def rounding_seconds(plan: Plan) -> float:
    """Estimate the time of rounding to nearest."""
    return sum(map(_tensor_seconds, plan.tensors))


def _tensor_seconds(tensor: TensorPlan) -> float:
    name = tensor.scheme.name if isinstance(tensor.scheme, GgmlScheme) else "integers"
    rate = QUANTIZE_RATES["K-quants"] if name in K_QUANTS else QUANTIZE_RATES.get(name, QUANTIZE_RATES["integers"])
    return num_weights(tensor) / rate


def export_seconds(plan: Plan, name: FormatName, nbytes: int) -> float | None:
    """Estimate the time to write this many bytes; None for formats without a recorded run."""
    packed = sum(tensor.nbytes for tensor in plan.tensors if isinstance(tensor.scheme, IntegerScheme))
    rate = EXPORT_RATES.get("gguf integers" if name == "gguf" and packed > nbytes / 2 else name)
    return nbytes / rate if rate else None
