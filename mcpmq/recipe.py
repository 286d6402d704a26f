"""Recipes: the scheme of every weight and the method that quantizes it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from mcpmq.compression_tables import ImagesTable, LayersTable, VocabularyTable
from mcpmq.errors import RecipeError
from mcpmq.scheme import (
    CodebookScheme,
    GgmlScheme,
    ScaleSearch,
    Scheme,
    SchemeChoice,
    SchemeRequest,
    parse_request,
    requested_schemes,
)
from mcpmq.system.text_file import read_toml

BUILTIN_DIRECTORY = Path(str(resources.files("mcpmq") / "recipes"))
RECIPE_BY_BITS = {4: "calibrated-int4", 8: "phone-int8"}  # without a format; calibration changes little at 8 bits
EXAMPLES_HINT = "`mcpmq recipes phone-int4` prints a complete recipe"
Activation = Literal["u8", "s8-token"]
TOKENS: Activation = "s8-token"
CALIBRATED_ACTIVATIONS = ("u8",)  # over their range in the calibration samples
GgufAudio = Literal["none", "glma"]


def _parse_weights(table: object, info: ValidationInfo) -> object:
    if not isinstance(table, dict):
        return table
    return {glob: _parse_scheme(scheme, info.data.get("scale_search", "mcpmq")) for glob, scheme in table.items()}


def _parse_scheme(scheme: object, search: ScaleSearch) -> object:
    parsed = parse_request(scheme) if isinstance(scheme, str) else scheme
    if isinstance(parsed, SchemeChoice):
        return SchemeChoice(tuple(_with_search(one, search) for one in parsed.schemes))
    return _with_search(parsed, search)


def _with_search(scheme: Any, search: ScaleSearch) -> Any:
    return replace(scheme, search=search) if isinstance(scheme, GgmlScheme) else scheme


class TokenWeights(BaseModel):
    """The weight of a token of each modality in the input statistics of the language model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    vision: float = Field(default=1.0, ge=0)  # image tokens
    text: float = Field(default=1.0, ge=0)  # the other tokens of the prompt
    answer: float = Field(default=1.0, ge=0)
    audio: float = Field(default=1.0, ge=0)  # audio tokens

    @model_validator(mode="after")
    def _check_total(self) -> Self:
        if not any((self.vision, self.text, self.answer, self.audio)):
            raise ValueError("at least one modality must have a weight greater than 0")
        return self


class Recipe(BaseModel):
    """A complete description of a quantization.

    weights: globs over common names (`language.*`, `head`) -> schemes. The last match wins; a weight without a match
        keeps its dtype. `q4_k or iq4_nl` gives a weight the first of them whose blocks divide its columns.
    method: the rounding of matrices. `rtn` rounds to nearest; `rtn-imatrix` to nearest on grids chosen by input
        statistics; `gptq` compensates errors; `auto` selects `rtn-imatrix` or `gptq` per block, by the error of the
        block's outputs on held-out samples. Tables are looked up by row and always rounded to nearest.
    targets: the outputs that `gptq` approximates on inputs in the quantized model: those of the `layer` before it is
        quantized, or those of the original `model`, so that later layers correct errors of earlier ones.
    smooth: smoothing of each block by `awq`, `smoothquant` or `fitted` scales, used where it lowers that error.
        `smoothquant` accounts for the error of 8-bit activations too; `fitted` minimizes the error that `gptq` leaves.
    token_weights: weights of the modalities in the input statistics.
    activations: globs -> dtype of the inputs of matrices in engines that multiply integers: `u8` over the range in the
        calibration samples; `s8-token` with a scale for each token, which the engine computes.
    vocabulary: the tokens that a trimmed model keeps; by default all.
    images: limits of the tokens of an image, also of calibration images; by default those of the original.
    layers: layers that are removed, with the measured cost; by default none.
    speech_output: `drop` leaves out the weights that synthesize speech, which no scheme changes.
    gguf_audio: `glma` writes the audio encoder of MiniCPM-o into GGUF files under this projector of llama.cpp, with
        other padding and attention than the original; by default GGUF files of it have no audio.
    onnx_embedding: `shared` stores a tied embedding once in ONNX artifacts, which transformers.js does not load; by
        default each of two graphs has it.
    scale_search: the implementation that chooses the scales of ggml's block types. `mcpmq` is faster and has smaller
        errors; `ggml` gives the bytes of llama-quantize.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    smooth: Literal["none", "awq", "smoothquant", "fitted"] = "none"
    method: Literal["rtn", "rtn-imatrix", "gptq", "auto"] = "rtn"
    targets: Literal["layer", "model"] = "layer"
    token_weights: TokenWeights | None = None
    activations: dict[str, Activation] = {}
    vocabulary: VocabularyTable | None = None
    images: ImagesTable | None = None
    layers: LayersTable | None = None
    speech_output: Literal["keep", "drop"] = "keep"
    gguf_audio: GgufAudio = "none"
    onnx_embedding: Literal["separate", "shared"] = "separate"
    scale_search: ScaleSearch = "mcpmq"  # before the weights, which are parsed with it
    weights: Annotated[dict[str, SchemeRequest], BeforeValidator(_parse_weights)]

    @model_validator(mode="after")
    def _check_token_weights(self) -> Self:
        if self.token_weights and not self.needs_calibration:
            raise ValueError('`[token_weights]` needs calibration, and `method = "rtn"` alone has none')
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        if self.targets == "model" and not self.compensates_errors:
            raise ValueError('`targets = "model"` needs `method = "gptq"` or `method = "auto"`')
        return self

    @model_validator(mode="after")
    def _check_codebooks(self) -> Self:
        if self.needs_calibration:
            for glob, scheme in self._requested():
                if isinstance(scheme, CodebookScheme):
                    raise ValueError(f'`{scheme}` of `{glob}` supports round-to-nearest only: use `method = "rtn"`')
        return self

    def _requested(self) -> Iterator[tuple[str, Scheme]]:
        return ((glob, scheme) for glob, request in self.weights.items() for scheme in requested_schemes(request))

    @property
    def needs_calibration(self) -> bool:
        """True if the result depends on calibration samples."""
        return self.method != "rtn" or self.smooth != "none" or self._has_calibrated_activations

    @property
    def _has_calibrated_activations(self) -> bool:
        return any(activation in CALIBRATED_ACTIVATIONS for activation in self.activations.values())

    @property
    def drops_speech(self) -> bool:
        """True if the result has no weights of speech output."""
        return self.speech_output == "drop"

    @property
    def compensates_errors(self) -> bool:
        """True if codes depend on the correlations of inputs, which few tokens estimate badly."""
        return self.method in ("gptq", "auto")

    @property
    def has_model_targets(self) -> bool:
        """True if weights are rounded to the outputs of the original model."""
        return self.targets == "model"

    @property
    def selects_per_block(self) -> bool:
        """True if a block has several candidates, among which held-out samples select."""
        return self.method == "auto" or self.smooth != "none"

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """Load a built-in recipe by name, or a TOML file by path.

        Raises:
            RecipeError: the recipe does not exist or is not valid.
        """
        path = recipe_path(name_or_path)
        if not os.path.isfile(path):  # noqa: PTH113 - False, not an error, for an invalid path
            known = ", ".join(builtin_recipes())
            raise RecipeError(f"recipe `{name_or_path}` not found", f"use one of: {known}; or the path of a .toml file")
        content = read_toml(path, RecipeError, EXAMPLES_HINT)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the recipe"
            raise RecipeError(f"`{path}`: {key}: {first['msg']}", EXAMPLES_HINT) from error

    def to_dict(self) -> dict[str, object]:
        """Return the recipe as plain values, with the keys of its TOML file."""
        weights = {glob: "keep" if scheme is None else str(scheme) for glob, scheme in self.weights.items()}
        tables = {
            "vocabulary": self.vocabulary and self.vocabulary.model_dump(exclude_defaults=True),
            "images": self.images and self.images.given,
            "layers": self.layers and self.layers.model_dump(mode="json"),
            "token_weights": self.token_weights and self.token_weights.model_dump(),
            "activations": self.activations,
        }
        methods = {"name": self.name, "smooth": self.smooth, "method": self.method}
        targets = {"targets": self.targets} if self.has_model_targets else {}
        search = {"scale_search": self.scale_search} if self.scale_search != "mcpmq" else {}
        settings: dict[str, str] = {"speech_output": self.speech_output} if self.drops_speech else {}
        settings |= {"gguf_audio": self.gguf_audio} if self.gguf_audio != "none" else {}
        settings |= {"onnx_embedding": self.onnx_embedding} if self.onnx_embedding != "separate" else {}
        given = {name: table for name, table in tables.items() if table}
        return {**methods, **targets, **search, **settings, **given, "weights": weights}


def recipe_path(name_or_path: str) -> Path:
    """Return the path of a recipe file, given itself or the name of a built-in recipe; it may not exist."""
    return Path(name_or_path) if name_or_path.endswith(".toml") else BUILTIN_DIRECTORY / f"{name_or_path}.toml"


def builtin_recipes() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(path.stem for path in BUILTIN_DIRECTORY.glob("*.toml"))


def recipe_reason(name: str) -> str:
    """Return the reason for a built-in recipe: the comment at the top of its file, without the final period."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("# ") for line in comment).rstrip(".")


Comments = Mapping[str, Sequence[str]]  # comment lines by the glob below them; by "" at the top of the file


def to_toml(recipe: Mapping[str, object], comments: Comments | None = None) -> str:
    """Return the values of `Recipe.to_dict` as the TOML text that `Recipe.load` reads."""
    comments = comments or {}
    lines = _comment_lines(comments.get("", ()))
    lines += [f"{key} = {json.dumps(value)}" for key, value in recipe.items() if not isinstance(value, Mapping)]
    for table, values in recipe.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{table}]"]
            for key, value in values.items():
                lines += [*_comment_lines(comments.get(key, ())), f"{json.dumps(key)} = {json.dumps(value)}"]
    return "\n".join(lines) + "\n"


def _comment_lines(lines: Sequence[str]) -> list[str]:
    return [f"# {line}" for line in lines]
