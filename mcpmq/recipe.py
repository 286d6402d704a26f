"""What the user asks for: which weights, on which grid, by which method."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mcpmq.errors import RecipeError
from mcpmq.scheme import CodebookScheme, Scheme, parse_scheme

BUILTIN = Path(str(resources.files("mcpmq") / "recipes"))
Activation = Literal["u8"]


def _parse_weights(table: object) -> object:
    if not isinstance(table, dict):
        return table
    return {glob: parse_scheme(scheme) if isinstance(scheme, str) else scheme for glob, scheme in table.items()}


class Modalities(BaseModel):
    """What a token of each modality weighs in the statistics, where modalities meet: in the language model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    vision: float = Field(default=1.0, ge=0)  # in the spans that images take
    text: float = Field(default=1.0, ge=0)  # of the prompt
    answer: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _weigh_something(self) -> Self:
        if not any((self.vision, self.text, self.answer)):
            raise ValueError("one modality must weigh more than 0")
        return self


class Recipe(BaseModel):
    """One whole answer to "how should this model be made small?".

    `weights` maps globs over common names (`language.*`, `head`) to schemes; the last match wins and
    a weight that nothing matches keeps its dtype.

    `round` says how matrices are rounded: `rtn` to nearest; `importance` to nearest, on grids fitted to the inputs that
    calibration samples bring; `gptq` with errors made up for on these inputs; `best` by importance or GPTQ, whichever
    keeps a block's outputs closer on samples held out for that. `smooth` moves scales into the layer before where held
    out samples say that it helps a block: `awq` for the sake of weights, `smoothquant` also for that of 8-bit inputs.
    Tables, which are looked up by row, see nothing and are rounded to nearest. `activations` maps globs to what the
    inputs of matrices are rounded to by an engine that multiplies integers: `u8`, over the range that calibration sees.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    smooth: Literal["none", "awq", "smoothquant"] = "none"
    round: Literal["rtn", "importance", "gptq", "best"] = "rtn"
    modalities: Modalities | None = None
    activations: dict[str, Activation] = {}
    weights: Annotated[dict[str, Scheme | None], BeforeValidator(_parse_weights)]

    @model_validator(mode="after")
    def _weigh_only_what_is_seen(self) -> Self:
        if self.modalities and not self.looks:
            raise ValueError('`[modalities]` weighs what calibration sees, and `round = "rtn"` alone sees nothing')
        return self

    @model_validator(mode="after")
    def _round_codebooks_to_nearest(self) -> Self:
        if self.looks:
            for glob, scheme in self.weights.items():
                if isinstance(scheme, CodebookScheme):
                    raise ValueError(f'`{scheme}`, which `{glob}` gets, is rounded to nearest only: `round = "rtn"`')
        return self

    @property
    def looks(self) -> bool:
        """Whether calibration samples decide anything."""
        return self.round != "rtn" or self.smooth != "none" or bool(self.activations)

    @property
    def chooses(self) -> bool:
        """Whether there is more than one way to round a block, and held-out samples choose."""
        return self.round == "best" or self.smooth != "none"

    @classmethod
    def load(cls, name_or_path: str) -> Self:
        """Read a recipe that comes with mcpmq by its name, or a TOML file by its path.

        Raises:
            RecipeError: there is none, or it is not valid.
        """
        path = Path(name_or_path) if name_or_path.endswith(".toml") else BUILTIN / f"{name_or_path}.toml"
        if not path.is_file():
            known = ", ".join(builtin_recipes())
            raise RecipeError(
                f"there is no recipe `{name_or_path}`", f"use one of: {known}; or the path of a .toml file"
            )
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"`{path}` is not valid TOML: {error}", "see `mcpmq/recipes/` for whole recipes"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the recipe"
            raise RecipeError(f"`{path}`: {where}: {first['msg']}", "see `mcpmq/recipes/` for whole recipes") from error

    def written(self) -> dict[str, object]:
        """The recipe as plain values, the way the TOML file says it."""
        weights = {glob: "keep" if scheme is None else str(scheme) for glob, scheme in self.weights.items()}
        modalities = {"modalities": self.modalities.model_dump()} if self.modalities else {}
        activations = {"activations": self.activations} if self.activations else {}
        methods = {"name": self.name, "smooth": self.smooth, "round": self.round}
        return {**methods, **modalities, **activations, "weights": weights}


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with mcpmq, sorted."""
    return sorted(path.stem for path in BUILTIN.glob("*.toml"))


Comments = Mapping[str, Sequence[str]]  # comment lines: above a weight's line by its glob, at the top of the file by ""


def as_toml(recipe: Mapping[str, object], comments: Comments | None = None) -> str:
    """What `Recipe.written` gives, as the text that `Recipe.load` reads."""
    told = comments or {}
    lines = _commented(told.get("", ()))
    lines += [f"{key} = {json.dumps(value)}" for key, value in recipe.items() if not isinstance(value, Mapping)]
    for table, values in recipe.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{table}]"]
            for key, value in values.items():
                lines += [*_commented(told.get(key, ())), f"{json.dumps(key)} = {json.dumps(value)}"]
    return "\n".join(lines) + "\n"


def _commented(lines: Sequence[str]) -> list[str]:
    return [f"# {line}" for line in lines]
