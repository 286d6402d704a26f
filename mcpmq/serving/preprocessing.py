"""Image sizes that llama.cpp encodes without resizing, as the processor of the original does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gguf import GGUFReader
from PIL import Image

SAME_RESIZING = ("idefics3",)  # projector types whose images llama.cpp resizes as the processor of the original
MERGED_PATCHES = 2  # side of the square of patches that becomes one token, if the file has no other


@dataclass(frozen=True, slots=True)
class EnginePreprocessing:
    """Sizes in pixels from the metadata of an mmproj file."""

    slice_side: int  # of a square image that is not resized; 0 if images are not sliced
    size_factor: int  # divisor of the sides of an image that is not resized

    @classmethod
    def read(cls, mmproj: Path) -> Self:
        """Read an mmproj file."""
        reader = GGUFReader(mmproj)
        side, patch = (_number(reader, f"clip.vision.{name}") or 0 for name in ("image_size", "patch_size"))
        merged = _number(reader, "clip.vision.spatial_merge_size") or MERGED_PATCHES
        projector: Any = reader.get_field("clip.projector_type")
        name = "" if projector is None else str(projector.contents())
        if name in SAME_RESIZING:
            return cls(0, 1)
        return cls(0 if name.startswith("qwen") else side, patch * merged)

    def resizes(self, image: Image.Image) -> bool:
        """Return True if llama.cpp resizes an image, with another filter than the processor of the original."""
        if self.slice_side:
            return image.size != (self.slice_side, self.slice_side)
        return any(side % self.size_factor for side in image.size)


def _number(reader: GGUFReader, key: str) -> int | None:
    found = reader.get_field(key)
    return None if found is None else int(found.contents())
