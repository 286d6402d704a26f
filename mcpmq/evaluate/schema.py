"""The records of a measurement, as stored in report.json."""

import math
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from mcpmq.runners.runner import PhaseTimings

NONSQUARE = "nonsquare"  # tag of images that llama.cpp resizes differently from the published code
GROUPS = ("image", NONSQUARE, "images", "video", "audio", "audio-image", "text")
ORIGINAL, ENGINE_BASELINE = "original", "engine_baseline"  # names of the reference models of an artifact
MAX_EXPONENT = 700.0
OptionalValues = Annotated[tuple[float, ...], Field(exclude_if=lambda values: not values)]


class Record(BaseModel):
    """Immutable data stored as JSON; an unknown value, e.g. the standard error of one sample, is stored as "NaN"."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Estimate(Record):
    """A value with its bootstrap standard error and 95 % percentile interval."""

    value: float
    standard_error: float
    low: float
    high: float

    def exponential(self) -> "Estimate":
        """Return the estimate of exp(value), e.g. a perplexity; its standard error is found by the delta method."""
        value, low, high = (math.exp(min(one, MAX_EXPONENT)) for one in (self.value, self.low, self.high))
        return Estimate(value=value, standard_error=value * self.standard_error, low=low, high=high)

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


class ComparedTokens(Record):
    """Comparison of a sample with a reference model, one value per answer token."""

    kl_divergences: tuple[float, ...]  # KL(reference || this) over the vocabulary, in nats
    top1_match: tuple[bool, ...]  # both models have the same most probable token
    removed_probability: OptionalValues = ()  # that the reference gives to tokens that a trimmed vocabulary lacks


class SampleMetrics(Record):
    """Metrics of a sample, one value per answer token."""

    id: str
    group: str  # one of GROUPS
    losses: tuple[float, ...]  # negative log-likelihood, in nats
    correct: tuple[bool, ...]  # the answer token is the most probable one
    argmax_ids: tuple[int, ...]  # the most probable token at each position, given the correct answer before it
    compared: dict[str, ComparedTokens]  # by name of the reference model; empty for a sample with other tokens
    characters: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None  # of a trimmed model

    @property
    def has_original_tokens(self) -> bool:
        """Return whether the tokens are those of the original; a trimmed vocabulary may have others."""
        return self.characters is None or bool(self.compared)

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.group not in GROUPS:
            raise ValueError(f"the group `{self.group}` is not one of {', '.join(GROUPS)}")
        compared = [values for one in self.compared.values() for values in (one.kl_divergences, one.top1_match)]
        lengths = {len(values) for values in (self.losses, self.correct, *compared)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"the numbers of values per token differ, or are 0: {sorted(lengths)}")
        if not all(abs(loss) < MAX_EXPONENT for loss in self.losses):
            raise ValueError(f"a loss is not a number below {MAX_EXPONENT:g}")
        return self


class GroupResult(Record):
    """Results of all samples of a group."""

    samples: int
    tokens: int  # of the answers
    loss: Estimate
    perplexity: Estimate
    top_1_accuracy: Estimate  # fraction of answer tokens that are the most probable one
    exact_match: Estimate  # fraction of answers that greedy decoding reproduces, including the end of the turn


class Difference(Record):
    """Difference of a group's answers from those of a reference model, on the same pixels and tokens."""

    loss_increase: Estimate  # mean over tokens, in nats
    perplexity_ratio: Estimate  # 1.01 is an increase by 1 %
    kl_divergence: Estimate  # mean over tokens of KL(reference || this), in nats
    kl_divergence_99th_percentile: Estimate  # over tokens, in nats
    kl_divergence_largest: float  # over tokens, in nats; a maximum has no bootstrap interval
    top_1_agreement: Estimate  # fraction of tokens for which both models have the same most probable token
    probability_change: Estimate  # mean over tokens of the change of the answer token's probability
    greedy_agreement: Estimate  # fraction of answers in which the most probable token agrees at every position
    exact_match_change: Estimate  # of the fraction of answers that greedy decoding reproduces


class VocabularyDifference(Record):
    """Difference of a group's answers in a trimmed vocabulary from those of the original, in the same characters."""

    samples: int
    same_tokens: int  # samples with the tokens of the original; only these are compared by token
    answer_tokens: int
    original_answer_tokens: int
    removed_probability: Estimate  # that the original gives to removed tokens, mean over compared tokens
    original_character_perplexity: Estimate  # exp of the original's mean loss of a character of the answers
    character_perplexity: Estimate  # exp of the mean loss of a character of the answers
    character_perplexity_ratio: Estimate  # 1.01 is an increase by 1 % per character


class Change(Record):
    """Change of a group's answers from an earlier artifact to a later one, both compared with the same reference."""

    perplexity_ratio: Estimate  # 1.01 is an increase by 1 %
    kl_divergence_increase: Estimate  # of the mean over tokens, in nats
    top_1_agreement_change: Estimate  # of the fraction of tokens with the reference's most probable token
    probability_change: Estimate  # mean over tokens of the change of the answer token's probability
    exact_match_change: Estimate  # of the fraction of answers that greedy decoding reproduces


class TaskScores(Record):
    """Scores of the original and of an artifact on the samples of a task, computed by another program."""

    metric: str  # the name of the score
    original: Estimate  # mean over samples
    artifact: Estimate  # mean over samples
    score_change: Estimate  # mean over samples of the artifact's score minus the original's
    scores: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(min_length=1)  # original and artifact, by sample


class MachineMetrics(Record):
    """Metrics that depend on the machine and vary between runs."""

    load_seconds: float  # from the start of the engine until the model is loaded
    tokens_per_second: float  # prompts and answers, including image encoding
    peak_rss_bytes: int
    baseline_rss_bytes: int  # the engine without a model
    phases: PhaseTimings | None  # of the image sample of median length; None for PyTorch, which runs without a KV cache
    from_cache: bool = False  # measured by an earlier run on the same inputs with the same versions
    cache_error: str | None = None  # reason why the measurement of the original could not be cached
    sequential_peak_rss_bytes: int | None = None  # if the vision encoder is freed before the language model is loaded
    vision_peak_rss_bytes: int | None = None  # of the same process, until the vision encoder is freed


class Measurement(Record):
    """The results of one model on one evaluation set."""

    engine: str
    groups: dict[str, GroupResult]
    nbytes_by_component: dict[str, int]
    machine_dependent: MachineMetrics
    notes: tuple[str, ...]
    samples: tuple[SampleMetrics, ...]
    kv_cache_bytes_per_token: int | None = None  # computed from the model's dimensions
    kv_cache: str | None = None  # type of cached keys and values in llama.cpp, or two types: `q8_0/q4_0`

    @property
    def nbytes(self) -> int:
        """The size of all files of the model."""
        return sum(self.nbytes_by_component.values())
