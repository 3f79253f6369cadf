"""Parser of the config in an mmsegmentation checkpoint: Python text that is never executed."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any


def parse_config(text: str) -> dict[str, Any]:
    """Return the plain values that a config assigns at its top level.

    Supports dict(...), {...}, lists, tuples, numbers, strings and names of earlier values; anything else, such as a
    call of another function, becomes None. Text that is not Python has no values.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return values
    for statement in statements:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                values[target.id] = _value(statement.value, values)
    return values


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element, names) for element in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values)
        return {key.value: _value(value, names) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value, names) for keyword in node.keywords if keyword.arg}
    return None
