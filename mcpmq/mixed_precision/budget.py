"""The limits of a search."""

from dataclasses import dataclass, replace
from typing import Self

from mcpmq.estimate.forecast import FormatEstimate


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of an artifact: bytes of its files, or bytes of device memory with a context of this many tokens."""

    file_nbytes: int | None = None
    memory_nbytes: int | None = None
    context: int = 4096
    sequential: bool = False  # the vision encoder is freed before the language model loads
    saved_tokens: int = 0  # of images, by limits that are not those of the original: the context is shorter by them

    @property
    def device_context(self) -> int:
        """The tokens of the context with limits of images."""
        return self.context - self.saved_tokens

    def scaled(self, factor: float) -> Self:
        """Return the budget with larger or smaller limits."""
        files, memory = (one and int(factor * one) for one in (self.file_nbytes, self.memory_nbytes))
        return replace(self, file_nbytes=files, memory_nbytes=memory)

    @property
    def label(self) -> str:
        """The part of a recipe's name for this budget."""
        return f"{self.file_nbytes or self.memory_nbytes}-bytes"

    def __str__(self) -> str:
        limits = []
        if self.file_nbytes is not None:
            limits.append(f"{self.file_nbytes:,} bytes of files")
        if self.memory_nbytes is not None:
            freed = ", with vision freed before the language model loads" if self.sequential else ""
            saved = f" ({self.context:,} with the images of the original)" if self.saved_tokens else ""
            context = f"a context of {self.device_context:,} tokens{saved}"
            limits.append(f"{self.memory_nbytes:,} bytes of memory at {context}{freed}")
        return " and ".join(limits)

    def usage(self, estimate: FormatEstimate) -> dict[str, tuple[int, int]]:
        """Return the limit and the estimated use in bytes of every limited resource, `file size` and `memory`."""
        device, usage = estimate.device, {}
        if self.file_nbytes is not None:
            usage["file size"] = self.file_nbytes, estimate.nbytes
        if self.memory_nbytes is not None:
            nbytes = device.sequential_nbytes if self.sequential else device.concurrent_nbytes
            usage["memory"] = self.memory_nbytes, nbytes
        return usage

    def used_nbytes(self, estimate: FormatEstimate) -> int:
        """Return the estimated use of the first limited resource."""
        return next(used for _, used in self.usage(estimate).values())

    def excess_nbytes(self, estimate: FormatEstimate) -> int:
        """Return the bytes above the tightest limit; negative below it."""
        return max(used - limit for limit, used in self.usage(estimate).values())
