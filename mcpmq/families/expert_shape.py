"""Hyperparameters of a mixture of experts, which takes the place of the FFN in every layer (arXiv 1701.06538)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Experts:
    """Gated FFNs, of which a router selects some for every token; their outputs are weighted and added."""

    count: int  # in a layer
    count_per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0  # of one more expert, which every token passes; 0: no such expert

    def __str__(self) -> str:
        return f"{self.count_per_token} of {self.count} experts per token"
