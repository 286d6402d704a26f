"""A recipe as a TOML file that a person reads and edits."""

import json
from collections.abc import Mapping, Sequence

Comments = Mapping[str, Sequence[str]]  # lines above a weight's line, by its glob; of the whole file by ""


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
