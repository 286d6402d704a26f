"""Description of one kind of vision encoder and projector for llama.cpp's mmproj file."""

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGUFWriter

from mcpmq.families.preprocessor import BICUBIC, PreprocessorConfig
from mcpmq.formats.gguf.names import TensorNames
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.model_view import ModelView

VISION_COMPONENTS = frozenset({"vision", "projector"})
ALL_COMPONENTS = VISION_COMPONENTS | {"audio", "audio_projector"}


def no_unused_tensors(model: ModelView) -> list[GgufTensor]:
    """Return no tensors: llama.cpp reads every tensor that it requires."""
    return []


def unchanged(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    """Return the tensor with the values of the checkpoint."""
    return tensor


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Tensor names, metadata keys and tokens of one projector type.

    add_metadata: (writer, model, preprocessor settings) -> None; writes the keys that are specific to the projector
        type, and raises FormatError for a model that llama.cpp would compute differently
    unused_tensors: (model) -> tensors that llama.cpp requires but does not read
    transform: (model, tensor) -> the tensor with the values that llama.cpp needs, where they differ; None if it has no
        use in the file
    """

    projector_type: str  # value of `projector_key`
    names: TensorNames
    required_tokens: tuple[str, ...]  # tokens that llama.cpp looks up in the vocabulary
    add_metadata: Callable[[GGUFWriter, ModelView, PreprocessorConfig], None]
    unused_tensors: Callable[[ModelView], list[GgufTensor]] = no_unused_tensors
    transform: Callable[[ModelView, GgufTensor], GgufTensor | None] = unchanged
    projector_key: str = "clip.projector_type"
    components: frozenset[str] = VISION_COMPONENTS  # in the file
    resample: int = BICUBIC  # the filter with which llama.cpp resizes images, as in Pillow
