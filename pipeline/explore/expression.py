"""Filter expressions: the subset of SQL that a user may write to select clips.

An expression is parsed by DuckDB and accepted only if every node of its syntax tree has a class listed here. It can
therefore compute a value from a clip's columns and do nothing else.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

# Classes of nodes that compute a value from a row: no subqueries, windows, parameters or table functions.
CLASSES = frozenset(
    ("BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE")
)
# Names of the functions into which DuckDB's parser translates operators, lists in brackets, and LIKE ... ESCAPE.
OPERATORS = frozenset(
    (
        *("+", "-", "*", "/", "//", "%", "||", "^", "**", "~~", "!~~", "~~*", "!~~*", "->", "->>", "list_value"),
        *("like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
    )
)
FUNCTIONS = frozenset(
    (
        *("abs", "ceil", "floor", "round", "sqrt", "ln", "log10", "exp", "greatest", "least", "isnan", "isfinite"),
        *("lower", "upper", "trim", "length", "contains", "starts_with", "ends_with", "concat", "substring"),
        *("regexp_matches", "regexp_full_match", "split_part", "coalesce", "ifnull", "nullif"),
        *("list_contains", "list_has_any", "list_has_all", "len", "json_extract", "json_extract_string"),
    )
)
SIMILARITY = "similarity"  # name of the column that a search adds
LONGEST = 4000  # largest number of characters of an expression


class ExpressionError(ValueError):
    """An expression that cannot be used; the message gives the reason."""


def check_expression(connection: duckdb.DuckDBPyConnection, text: str, columns: Collection[str]) -> None:
    """Raise ExpressionError unless `text` is one SQL expression over `columns` that only computes a value.

    An accepted expression is safe in `WHERE (text)`, on a line of its own because it may end in a comment.
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"longer than {LONGEST} characters")
    query = f"SELECT 1 FROM clips WHERE (\n{text}\n)"
    tree = _parsed(connection, query)
    if tree["error"]:
        raise ExpressionError(_syntax_error(connection, query, tree))
    if _shell(tree) != _shell(_parsed(connection, "SELECT 1 FROM clips WHERE (\ntrue\n)")):
        raise ExpressionError("expected one expression, such as motion_object > 0.1 AND keep")
    for node in _nodes(tree["statements"][0]["node"]["where_clause"]):
        _check_node(node, columns)


def _syntax_error(connection: duckdb.DuckDBPyConnection, query: str, tree: dict[str, Any]) -> str:
    """Return DuckDB's message, except where it names the closing parenthesis that ends `query`, which no user typed."""
    if int(tree.get("position", -1)) != len(query.encode()) - 1:
        return str(tree["error_message"]).splitlines()[0]
    if _parsed(connection, query[:-1])["error"]:
        return "the expression ends too early"
    return "a closing parenthesis has no opening one"


def _check_node(node: dict[str, Any], columns: Collection[str]) -> None:
    if "class" not in node:
        if "from_table" in node or "select_list" in node:
            raise ExpressionError("subqueries are not allowed in a filter")
        return
    if node["class"] not in CLASSES:
        raise ExpressionError(f"{node['class'].lower().replace('_', ' ')}: not allowed in a filter")
    if node["class"] == "FUNCTION":
        name = node["function_name"]
        if node.get("schema") or node.get("catalog") or name not in FUNCTIONS | OPERATORS:
            raise ExpressionError(f"{name}: not an allowed function; allowed are {', '.join(sorted(FUNCTIONS))}")
    if node["class"] == "COLUMN_REF":
        name = ".".join(node["column_names"])
        if name.lower() not in {column.lower() for column in columns}:
            if name.lower() == SIMILARITY:
                raise ExpressionError(f"{SIMILARITY} is a column only during a search: search first")
            near = difflib.get_close_matches(name, columns, n=1)
            raise ExpressionError(f"no column {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _parsed(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    tree: dict[str, Any] = json.loads(text)
    return tree


def _shell(tree: dict[str, Any]) -> list[Any]:
    """Return the statements without their WHERE clause. Equal for every input that is a single expression."""
    shells = []
    for statement in tree["statements"]:
        node = {name: value for name, value in statement["node"].items() if name != "where_clause"}
        shells.append({**statement, "node": node})
    return shells
