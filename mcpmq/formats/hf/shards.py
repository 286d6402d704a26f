"""What goes into which shard, and how much room headers get: decided without torch."""

from mcpmq.families.family import TensorSpec
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.model_view import Declared

SHARD_NBYTES = 5_000_000_000
HEADER_NBYTES = 160  # of a tensor, beside the name of its weight: at most
TENSORS_OF_A_WEIGHT = 6  # at most: bitsandbytes' double quantization
SEES, SPEAKS = "vision+projector", "language"


def by_component(model: Declared) -> dict[str, list[TensorSpec]]:
    """The weights of what sees, and of what speaks."""
    components: dict[str, list[TensorSpec]] = {}
    for spec in model.specs.values():
        component = SEES if spec.component in ("vision", "projector") else SPEAKS
        components.setdefault(component, []).append(spec)
    return components


def header_nbytes(model: Declared, specs: list[TensorSpec]) -> int:
    """Room that is enough for the header of a shard with all of these."""
    return sum(_header_nbytes(model, spec) for spec in specs)


def _header_nbytes(model: Declared, spec: TensorSpec) -> int:
    tensors = TENSORS_OF_A_WEIGHT if is_packed(model.scheme(spec.name)) else 1
    return tensors * (len(spec.hub_name) + HEADER_NBYTES)


def shard_name(number: int, count: int) -> str:
    """As Hugging Face numbers them, from one on."""
    return f"model-{number + 1:05}-of-{count:05}.safetensors"
