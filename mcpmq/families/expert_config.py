"""Keys of a mixture of experts in a raw config.json."""

from typing import Literal

from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, IntermediateSize
from mcpmq.families.expert_shape import Experts


class ExpertConfig(ConfigSchema):
    """Keys of `text_config`; formats have experts in every layer, and weights that add up to 1."""

    num_experts: PositiveInt = Field(le=4096)
    num_experts_per_tok: PositiveInt
    moe_intermediate_size: IntermediateSize
    shared_expert_intermediate_size: IntermediateSize | None = None
    norm_topk_prob: Literal[True] = True
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: tuple[()] | None = ()

    def to_experts(self) -> Experts:
        """Return the hyperparameters.

        Raises:
            CheckpointError: a token has more experts than there are.
        """
        if self.num_experts_per_tok > self.num_experts:
            raise CheckpointError(
                f"`config.json` has {self.num_experts} experts, and {self.num_experts_per_tok} for every token",
                "compare it with the published file",
            )
        shared = self.shared_expert_intermediate_size or 0
        return Experts(self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size, shared)
