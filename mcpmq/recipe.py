"""What the user asks for: which weights, on which grid, by which method."""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mcpmq.errors import RecipeError

BUILTIN = Path(str(resources.files("mcpmq") / "recipes"))
GROUP_SIZES = (16, 32, 64, 128, 256)
# Weights in a block and bytes of a block, as ggml lays them out (ggml-common.h).
GGML_BLOCKS = {
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "iq4_nl": (32, 18),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
CODEBOOKS, CODEBOOK_COLUMNS = ("nf4", "fp4"), 64  # bitsandbytes' grids, and the columns that share a scale
FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
Activation = Literal["u8"]


@dataclass(frozen=True, slots=True)
class IntegerScheme:
    """Integers of 4 or 8 bits, one fp16 scale a group: written `int4-g32`, `int8-row`, `int4-g64-asym`."""

    bits: int
    group_size: int | None  # columns that share a scale; None: the whole row
    symmetric: bool = True

    def __str__(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"int{self.bits}-{group}" + ("" if self.symmetric else "-asym")

    def groups(self, columns: int) -> int:
        return -(-columns // self.group_size) if self.group_size else 1

    def row_nbytes(self, columns: int) -> int:
        scale_bytes = 2 * self.groups(columns)
        zero_bits = 0 if self.symmetric else self.bits * self.groups(columns)
        return -(-columns * self.bits // 8) + scale_bytes + -(-zero_bits // 8)


@dataclass(frozen=True, slots=True)
class GgmlScheme:
    """One of ggml's block types: written `q8_0`, `q4_k`."""

    type: str

    def __str__(self) -> str:
        return self.type

    @property
    def block_columns(self) -> int:
        return GGML_BLOCKS[self.type][0]

    def row_nbytes(self, columns: int) -> int:
        block, nbytes = GGML_BLOCKS[self.type]
        return -(-columns // block) * nbytes


@dataclass(frozen=True, slots=True)
class CodebookScheme:
    """One of bitsandbytes' sets of sixteen values, with double quantization: written `nf4`, `fp4`."""

    name: str

    def __str__(self) -> str:
        return self.name

    def row_nbytes(self, columns: int) -> int:
        return (
            columns // 2 + columns // CODEBOOK_COLUMNS
        )  # 4 bits a weight, 8 a scale; what scales share is next to none


@dataclass(frozen=True, slots=True)
class FloatScheme:
    """Another floating-point type, converted and otherwise untouched: written `f16`."""

    dtype: str

    def __str__(self) -> str:
        return self.dtype

    def row_nbytes(self, columns: int) -> int:
        return columns * FLOAT_BYTES[self.dtype]


Scheme = IntegerScheme | GgmlScheme | CodebookScheme | FloatScheme


def parse_scheme(text: str) -> Scheme | None:
    """Read a scheme as it is written in a recipe; `keep` is None.

    Raises:
        RecipeError: the text names no scheme.
    """
    if text == "keep":
        return None
    if text in GGML_BLOCKS:
        return GgmlScheme(text)
    if text in CODEBOOKS:
        return CodebookScheme(text)
    if text in FLOAT_BYTES:
        return FloatScheme(text)
    return _parse_integer(text)


def _parse_integer(text: str) -> IntegerScheme:
    found = re.fullmatch(r"int([48])-(?:g(\d+)|row)(-asym)?", text)
    if not found or (found[2] and int(found[2]) not in GROUP_SIZES):
        names = ", ".join([*GGML_BLOCKS, *CODEBOOKS, *FLOAT_BYTES])
        raise RecipeError(
            f"`{text}` is not a scheme",
            f"write `int4` or `int8` with `-row` or `-g` and one of {', '.join(map(str, GROUP_SIZES))},"
            f" with `-asym` if zero points are wanted; or one of: {names}, keep",
        )
    return IntegerScheme(int(found[1]), int(found[2]) if found[2] else None, not found[3])


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
