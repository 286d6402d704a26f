"""What is said of the families is what the code does."""

from mcpmq.families import FAMILIES
from mcpmq.formats.support import facts, table


def test_every_family_is_listed_once_with_its_checkpoints() -> None:
    """As facts and as a table, in the same order."""
    names = [family.name for family in FAMILIES]

    assert [fact["family"] for fact in facts()] == names
    drawn = [name for name, _ in table().rows]
    assert [name.partition(" (")[0] for name in drawn if not name.startswith(" ")] == names
    assert {name.strip() for name in drawn if name.startswith(" ")} == {
        checkpoint for family in FAMILIES for checkpoint in family.published
    }
    assert len(set(names)) == len(names)
    assert all(fact["checkpoints"] for fact in facts())


def test_what_differs_is_marked_and_explained() -> None:
    """A star in the cell, and the reason under the table."""
    drawn = table()
    rows = [cells for name, cells in drawn.rows if not name.startswith(" ")]
    for family, cells in zip(FAMILIES, rows, strict=True):
        said = {**dict(family.refusals), **dict(family.caveats)}
        stars = sum(cell.endswith("*") for cell in cells)
        assert stars == len(said), family.name
        for reason in said.values():
            assert any(note.endswith(reason) for note in drawn.notes)
