"""Options: dataclasses from YAML and from `key=value`, checked by pydantic, with messages that name the key."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")

Count = Annotated[int, Field(gt=0)]
WholeNumber = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

PLAIN_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}  # of values, by annotation


class OptionError(ValueError):
    """Options that cannot be used; the message names the key and the most similar valid one."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-3 is a number as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def parse(text: str, where: str) -> Any:
    """Return the value of the YAML `text`. Raises OptionError, which begins with `where`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"{where}: {' '.join(str(error).split())}") from error


def parse_section(text: str, where: str) -> dict[str, Any]:
    """Return the YAML mapping in `text`. Raises OptionError."""
    tree = parse(text, where) or {}
    if not isinstance(tree, dict):
        raise OptionError(f"{where}: expected keys and values at the top, got {type(tree).__name__}")
    return tree


def override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `key=value` and `section.key=value` in `tree`."""
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


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` on top, section by section.

    A key that `base` lacks is inserted after the key that precedes it in `changes`, because the order of filters and
    thresholds has a meaning.
    """
    result, previous = dict(base), ""
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        new = merged(old, value) if isinstance(old, Mapping) and both else value
        if key not in result and previous in result:
            items = list(result.items())
            items.insert([name for name, _ in items].index(previous) + 1, (key, new))
            result = dict(items)
        else:
            result[key] = new
        previous = key
    return result


def typed(config_type: type[T], tree: Mapping[str, Any]) -> T:
    """Return the dataclass `config_type` with the values of `tree`. "3" and true are not numbers; a single value stands
    for a tuple of one, and "5,9" for a tuple of two. Raises OptionError for an unknown key, a value of another type, or
    a value out of bounds.
    """
    try:
        text = json.dumps(_prepared(config_type, tree, ""), default=str)
        return typing.cast(T, _adapter(typing.cast(Any, config_type)).validate_json(text, strict=True, extra="forbid"))
    except ValidationError as error:
        raise OptionError(_message(config_type, error)) from error


@functools.lru_cache(maxsize=16)
def _adapter(config_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(config_type)


def _prepared(annotation: Any, value: Any, path: str) -> Any:
    """Return `value` with lists where `annotation` has tuples, and an empty section where a mapping has no value."""
    annotation = next(_plain(annotation))
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if fields := _fields(annotation):
        section = value if isinstance(value, Mapping) else {}
        items = {key: _prepared(fields.get(key, Any), item, f"{path}{key}.") for key, item in section.items()}
        return items if isinstance(value, Mapping) else value
    if origin is tuple and value is not None:
        if isinstance(value, str) and arguments[0] is not str:
            value = parse(f"[{value}]", path.rstrip("."))
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values and arguments[0] is Count:
            raise OptionError(f"{path.rstrip('.')}: expected at least one")
        return values
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return {} if value is None else value
        empty: dict[str, Any] | None = {} if _fields(arguments[1]) or typing.get_origin(arguments[1]) else None
        return {
            key: _prepared(arguments[1], empty if item is None else item, f"{path}{key}.")
            for key, item in value.items()
        }
    return value


def _message(config_type: Any, error: ValidationError) -> str:
    """Return one line about the first problem of `error`."""
    problem = error.errors(include_url=False)[0]
    path, value, context = ".".join(map(str, problem["loc"])), problem["input"], problem.get("ctx", {})
    if problem["type"] == "unexpected_keyword_argument":
        return f"unknown key {path!r}{nearest(str(problem['loc'][-1]), _fields(_at(config_type, problem['loc'][:-1])))}"
    if problem["type"] == "value_error":
        return f"{path}: {context['error']}" if path else str(context["error"])
    if problem["type"] in ("dataclass_type", "mapping_type", "dict_type"):
        return f"{path}: expected a section, got {value!r}"
    if problem["type"] == "too_short":
        return f"{path}: expected at least one"
    return f"{path}: expected {problem['msg'].removeprefix('Input should be ')}, got {value!r}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message: the one of `names` that was probably meant, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f": expected one of {', '.join(names) or 'none'}"


def check_arguments(
    function: Callable[..., Any], options: Mapping[str, Any], where: str, supplied: Collection[str] = ()
) -> None:
    """Raise OptionError if `function` does not take one of `options`, keyword arguments, if one has the wrong type, or
    if one is missing. `where` is the section of the options in the recipe; `supplied` are no options of it."""
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in supplied}
    for name, value in options.items():
        if name not in parameters:
            raise OptionError(f"unknown key {f'{where}.{name}'!r}{nearest(name, parameters)}")
        expected = str(parameters[name].annotation).removesuffix(" | None")
        accepted = PLAIN_TYPES.get(expected)
        if accepted and value is not None and type(value) not in accepted:
            raise OptionError(f"{where}.{name}: expected {expected}, got {value!r}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise OptionError(f"{where}.{name}: expected a value, got none")


def _at(annotation: Any, path: Sequence[int | str]) -> Any:
    """Return the annotation of the option at `path` in the dataclass `annotation`, without its bounds."""
    for key in path:
        fields = _fields(annotation)
        if fields:
            annotation = fields[str(key)]
        else:
            arguments = typing.get_args(annotation)
            annotation = arguments[1] if len(arguments) > 1 and arguments[1] is not Ellipsis else arguments[0]
        annotation = next(_plain(annotation))
    return annotation


def _plain(annotation: Any) -> Iterator[Any]:
    """Yield the annotations inside Annotated and Optional."""
    if typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for inner in typing.get_args(annotation)[: 1 if typing.get_origin(annotation) is Annotated else None]:
            yield from _plain(inner)
    elif annotation is not types.NoneType:
        yield annotation


def _fields(annotation: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(annotation):
        return {}
    hints = typing.get_type_hints(annotation, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(annotation)}
