"""How a family writes a turn and the images in it: data alone, which plans can have without a tokenizer."""

from dataclasses import dataclass
from typing import Literal

TAGS, NUMBER_TAGS = ("<image>", "</image>", "<slice>", "</slice>"), ("<image_id>", "</image_id>")


@dataclass(frozen=True, slots=True)
class Layout:
    """What ends a turn and what stands for an image; what follows those two is about slices, of MiniCPM-V alone."""

    end_of_turn: str = "<|im_end|>"
    placeholder: str = "<unk>"  # of a token of an image
    # What a slice becomes, where its tokens stand, and which file says how images are sliced.
    slicing: Literal["queries", "configured", "merged", "canvas"] = "queries"
    numbered: bool = True  # an image begins with its number
    slices_as_images: bool = False  # a slice has the tags of an image; one pair of `<slice>` is around all of them
    extra: Literal["bounds", "types", "none"] = "bounds"  # how the native module learns which tokens are of images
    template: str | None = None  # of a chat, where a checkpoint brings none

    @property
    def opening(self) -> tuple[str, ...]:
        """What a slice begins with."""
        return ("<image>",) if self.slices_as_images else ("<image>", "<slice>")

    @property
    def needed(self) -> tuple[str, ...]:
        """Tokens that a tokenizer must have."""
        return (*TAGS, *(NUMBER_TAGS if self.numbered else ()), self.placeholder, self.end_of_turn)


SINCE_2_6 = Layout()  # MiniCPM-V 2.6 to 4.5
