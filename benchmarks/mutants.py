"""Mutants of a module: its source with one operator, comparison, constant, negation or reduction changed."""

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

from benchmarks.commands import ROOT

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
METHODS = {
    "max": "min",
    "min": "max",
    "amax": "amin",
    "amin": "amax",
    "argmax": "argmin",
    "argmin": "argmax",
    "floor": "ceil",
}
CHUNK_SIZES = ("CHUNK", "TILE")  # parts of the names of constants that are not mutated


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed expression: lines and columns count as in `ast`, columns in bytes."""

    module: str  # relative to the project
    line: int
    column: int
    end_line: int
    end_column: int
    original: str
    mutated: str

    def apply(self, source: str) -> str:
        """Return the source of the module with the expression replaced."""
        lines = source.encode().splitlines(keepends=True)
        before = b"".join(lines[: self.line - 1]) + lines[self.line - 1][: self.column]
        after = lines[self.end_line - 1][self.end_column :] + b"".join(lines[self.end_line :])
        return (before + f"({self.mutated})".encode() + after).decode()


def package_mutants(package: str, *, chunk_sizes: bool = False) -> Iterator[Mutant]:
    """Yield the mutants of a package without, or with, those of chunk sizes, in the order of files and expressions."""
    for path in sorted((ROOT / "mcpmq" / package).rglob("*.py")):
        yield from module_mutants(str(path.relative_to(ROOT)), path.read_text(), chunk_sizes=chunk_sizes)


def module_mutants(module: str, source: str, *, chunk_sizes: bool = False) -> Iterator[Mutant]:
    """Yield the mutants of a module without, or with, those of chunk sizes."""
    tree = ast.parse(source)
    unchanged = [part for node in ast.walk(tree) for part in _without_behavior(node)]
    unchanged += [node for node in tree.body if not chunk_sizes and _is_chunk_size(node)]
    skipped = {id(inner) for part in unchanged for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in skipped and (changed := _changed(node)):
            place = (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
            yield Mutant(module, *place, ast.unparse(node), changed)


def _is_chunk_size(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
    return bool(names) and all(any(part in name for part in CHUNK_SIZES) for name in names)


def _without_behavior(node: ast.AST) -> Iterator[ast.AST]:
    """Yield annotations, error messages, assertions and f-strings: changes there are equivalent or break the syntax."""
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    elif isinstance(node, ast.FunctionDef):
        yield from (
            argument.annotation
            for argument in ast.walk(node.args)
            if isinstance(argument, ast.arg) and argument.annotation
        )
        yield from [node.returns] if node.returns else []
        yield from node.decorator_list
    elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        yield node


def _changed(node: ast.expr) -> str | None:
    """Return the mutated source of an expression, or None if no mutation applies."""
    changed: ast.expr = deepcopy(node)
    if isinstance(changed, ast.BinOp | ast.BoolOp) and type(changed.op) in OPERATORS:
        changed.op = OPERATORS[type(changed.op)]()  # type: ignore[assignment]
    elif isinstance(changed, ast.Compare) and type(changed.ops[0]) in OPERATORS:
        changed.ops[0] = OPERATORS[type(changed.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(changed, ast.UnaryOp) and isinstance(changed.op, ast.USub | ast.Not):
        changed = changed.operand
    elif isinstance(changed, ast.Call) and isinstance(changed.func, ast.Attribute) and changed.func.attr in METHODS:
        changed.func.attr = METHODS[changed.func.attr]
    else:
        return _changed_constant(node)
    return ast.unparse(changed)


def _changed_constant(node: ast.expr) -> str | None:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return repr(value + 1 if isinstance(value, int) else 2 * value or 1.0)
