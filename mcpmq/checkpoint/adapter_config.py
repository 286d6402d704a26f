"""Configuration of a LoRA adapter as PEFT saves it: the settings that decide a merge, and those that prevent it."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PositiveInt

from mcpmq.checkpoint.weight_files import ADAPTER_CONFIG
from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import validate_config

MAX_PATTERN_CHARACTERS = 512
NESTED_REPETITION = re.compile(r"\([^()]*[*+}][^()]*\)[*+{]")  # may take exponential time
# Initializations that change the adapter only; others change the weights of the base model when it is loaded.
INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
# Settings without an influence on merged weights, or whose influence is in the names and shapes of the tensors.
# `fan_in_fan_out` applies to layers that store [in, out], which no family has: PEFT ignores it for others.
OTHER_KEYS = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "velora_config",  # changes gradients only
    ]
)
UNSUPPORTED = {  # settings that a merge into single weights cannot represent, or that change its formula
    "alora_invocation_tokens": "an activated LoRA, which applies to a part of the tokens only",
    "arrow_config": "a router over several adapters",
    "kasa_config": "KaSA, which truncates the weights of the base model",
    "layer_replication": "replicated layers",
    "megatron_config": "layers of Megatron",
    "monteclora_config": "MonteCLoRA, which samples the weights",
    "target_parameters": "LoRA of parameters that are not matrices of a layer, such as stacked experts",
    "trainable_token_indices": "trained rows of an embedding",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
HINT = "merge it with PEFT (`merge_and_unload`, then `save_pretrained`), and convert the merged checkpoint"


def _empty_if_none(value: object) -> object:
    return {} if value is None else value


class AdapterConfig(BaseModel):
    """Settings of an adapter that decide the merged weights; the defaults are those of PEFT."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: Literal["LORA"]
    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    use_dora: bool = False
    ensure_weight_tying: bool = False
    rank_pattern: Annotated[dict[str, PositiveInt], BeforeValidator(_empty_if_none)] = Field(default={})
    alpha_pattern: Annotated[dict[str, FiniteFloat], BeforeValidator(_empty_if_none)] = Field(default={})

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate the content of `adapter_config.json`.

        Raises:
            CheckpointError: the adapter is not a LoRA, or has a setting that a merge cannot represent.
        """
        if (kind := values.get("peft_type")) != "LORA":
            raise CheckpointError(f"`{ADAPTER_CONFIG}`: an adapter of the kind `{kind}`, not LORA", HINT)
        for key, reason in UNSUPPORTED.items():
            if values.get(key):
                raise CheckpointError(f"`{ADAPTER_CONFIG}` sets `{key}`: {reason}", HINT)
        if (initialization := values.get("init_lora_weights")) not in INITIALIZATIONS:
            raise CheckpointError(
                f"`{ADAPTER_CONFIG}`: `{initialization}` has changed the weights of the base model too", HINT
            )
        config = validate_config(cls, values, ADAPTER_CONFIG)
        config._check_keys(values)
        return config

    def _check_keys(self, values: Mapping[str, Any]) -> None:
        known = OTHER_KEYS.union(UNSUPPORTED, type(self).model_fields)
        unknown = [key for key, value in values.items() if value and key not in known]
        if unknown:
            raise CheckpointError(f"`{ADAPTER_CONFIG}` sets `{unknown[0]}`, which is unknown", HINT)
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            _check_pattern(pattern)

    def rank(self, module: str) -> int:
        """Return the rank of a module of the base model."""
        return self.rank_pattern.get(_matching(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        """Return the factor of the product of both matrices (rsLoRA: arXiv 2312.03732)."""
        rank = self.rank(module)
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """Return the first pattern that matches a name, or its end after a dot."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)), "")


def _check_pattern(pattern: str) -> None:
    try:
        valid = len(pattern) <= MAX_PATTERN_CHARACTERS and not NESTED_REPETITION.search(pattern)
        re.compile(pattern)
    except re.error:
        valid = False
    if not valid:
        raise CheckpointError(
            f"`{ADAPTER_CONFIG}`: `{pattern[:80]}` is not a regular expression of at most {MAX_PATTERN_CHARACTERS}"
            " characters without nested repetition",
            "write the names of the modules",
        )
