"""The tables of supported families and schemes agree with the families and with the known abilities of each format."""

import pytest

from mcpmq.families import FAMILIES
from mcpmq.formats import FORMATS, declared_format
from mcpmq.formats.support import scheme_support, scheme_table, support_matrix, support_table

INTEGER_READERS = ("gguf", "onnx", "gptq", "awq", "compressed-tensors", "mlx")


def test_every_family_is_listed_once_with_its_checkpoints() -> None:
    """The matrix and the table list the same families in the same order."""
    names = [family.name for family in FAMILIES]
    first_cells = [name for name, _ in support_table().rows]

    assert [entry["family"] for entry in support_matrix()] == names
    assert [name.partition(" (")[0] for name in first_cells if not name.startswith(" ")] == names
    assert {name.strip() for name in first_cells if name.startswith(" ")} == {
        checkpoint for family in FAMILIES for checkpoint in family.hub_ids
    }
    assert len(set(names)) == len(names)
    assert all(entry["checkpoints"] for entry in support_matrix())


def test_limitations_are_marked_and_explained() -> None:
    """A cell with a limitation has an asterisk, and the reason is a note under the table."""
    table = support_table()
    rows = [cells for name, cells in table.rows if not name.startswith(" ")]
    for family, cells in zip(FAMILIES, rows, strict=True):
        excluded = {name: declared_format(name).unsupported_family(family) for name in FORMATS}
        reasons = {name: reason for name, reason in excluded.items() if reason} | dict(family.caveats)
        assert sum(cell.endswith("*") for cell in cells) == len(reasons), family.name
        for reason in reasons.values():
            assert any(note.endswith(reason) for note in table.notes)


@pytest.mark.parametrize(
    ("scheme", "formats"),
    [
        ("int4-g32", INTEGER_READERS),
        ("int4-g64", INTEGER_READERS),
        ("q4_1", ("gguf", "mlx")),
        ("int4-g16", ("onnx", "compressed-tensors")),
        ("int4-g256", ("gguf", "onnx", "compressed-tensors")),
        ("int4-row", ("gguf", "onnx", "gptq", "compressed-tensors")),
        ("int4-g128-asym", ("onnx", "gptq", "awq")),
        ("int4-row-asym", ("onnx", "gptq")),
        ("int8-g32", ("gguf", "onnx", "gptq", "compressed-tensors", "mlx")),
        ("int8-row", ("gguf", "onnx", "gptq", "bnb", "compressed-tensors")),
        ("int8-g16-asym", ("onnx",)),
        ("q4_k", ("gguf",)),
        ("iq4_nl", ("gguf",)),
        ("iq4_xs", ("gguf",)),
        ("iq3_s", ("gguf",)),
        ("q2_k", ("gguf",)),
        ("q3_k", ("gguf",)),
        ("nf4", ("bnb",)),
        ("bf16", FORMATS),
    ],
)
def test_schemes_are_supported_by_the_formats_whose_loaders_read_them(scheme: str, formats: tuple[str, ...]) -> None:
    """vLLM and gptqmodel load groups of 32 to 128; bitsandbytes loads codebooks and 8-bit rows; ggml its own types."""
    assert scheme_support()[scheme] == formats


def test_the_scheme_table_has_every_scheme_once() -> None:
    """Integers come first and floats last."""
    names = [name.strip("`") for row, _ in scheme_table().rows for name in row.split(", ")]

    assert names == list(scheme_support())
    assert len(names) == 41
    assert names[:3] == ["int4-g16", "int4-g32", "int4-g64"]
    assert names[-3:] == ["f32", "f16", "bf16"]
