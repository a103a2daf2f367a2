"""Options: dataclasses from YAML and from `key=value`, checked against their annotations."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Count = typing.Annotated[int, "more than 0"]
Amount = typing.Annotated[float, "more than 0"]
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # YAML 1.1 takes 1e-3 for text


class OptionError(ValueError):
    """Options that cannot be used; the message says which key, and what was meant most likely."""


def parse(text: str, where: str) -> Any:
    """What YAML says. Raises OptionError with `where` it stands."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"{where}: {' '.join(str(error).split())}") from error


def parse_section(text: str, where: str) -> dict[str, Any]:
    """The same, of keys and values."""
    tree = parse(text, where) or {}
    if not isinstance(tree, dict):
        raise OptionError(f"{where}: expected keys and values at the top, got {type(tree).__name__}")
    return tree


def override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets `key=value` and `section.key=value` in `tree`."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise OptionError(f"{text!r}: overrides look like key=value")
        section, names = tree, key.split(".")
        for name in names[:-1]:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise OptionError(f"{key}: {name} is a value, not a section")
        section[names[-1]] = parse(value, key)


def typed(kind: Any, value: Any, path: str = "") -> Any:
    """`value` as `kind`: a dataclass from a mapping, or a choice, tuple, mapping or scalar checked against its
    annotation. One value stands for a tuple of one, and 5,9 for numbers."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for key in (section := _section(value, path)):
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(hints)}"
                raise OptionError(f"unknown key {_join(path, key)!r}{hint}")
        return kind(**{key: typed(hints[key], item, _join(path, key)) for key, item in section.items()})  # type: ignore[operator]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        made = typed(args[0], value, path)
        if not made > 0:
            raise OptionError(f"{path}: expected more than 0, got {value!r}")
        return made
    if origin is typing.Literal:
        if value not in args:
            raise OptionError(f"{path}: {value!r} is none of {', '.join(map(str, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else typed(next(a for a in args if a is not types.NoneType), value, path)
    if origin is tuple:
        if isinstance(value, str) and args[0] is not str:
            value = parse(f"[{value}]", path)
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items and args[0] is Count:
            raise OptionError(f"{path}: expected at least one")
        return tuple(typed(args[0], item, path) for item in items)
    if origin is not None and issubclass(origin, Mapping):
        return {
            str(key): typed(args[1], {} if item is None else item, _join(path, key))
            for key, item in _section({} if value is None else value, path).items()
        }
    return _scalar(kind, value, path)


def _section(value: Any, path: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{path}: expected a section, got {value!r}")
    return value


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise OptionError(f"{path}: expected {kind.__name__}, got {value!r}")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
