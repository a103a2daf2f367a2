"""Serialization of the answers of a child process that decodes untrusted media.

Answers are plain data in MessagePack, never pickles: malicious media could take over the child, and a pickle from it
could then run code in the parent. The parent converts a value to the declared return type of the called function. For
an exception only its text and a few attributes are sent; the parent selects the class.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar, get_type_hints

import msgpack
from pydantic import TypeAdapter

from pipeline.media.faults import ChildTraceback, OverLimit, is_foreseen, is_out_of_memory, place_of, trace_of

Result = TypeVar("Result")

LONGEST_PLACE = 200  # largest number of characters of `RaisedInChild.place` that are used


class SandboxError(Exception):
    """The child ended before it answered, or its answer is malformed. The message gives the cause."""


@dataclasses.dataclass(frozen=True)
class RaisedInChild:
    """An exception in the child: the name of its class, its message, and attributes for its classification."""

    name: str
    message: str
    foreseen: bool
    is_out_of_memory: bool
    errno: int | None
    strerror: str | None
    filename: str | None
    options: tuple[str, ...]  # of OverLimit
    trace: str
    place: str

    def exception(self) -> Exception:
        """Return the exception to raise in the parent; its cause holds the child's traceback.

        MediaError, OverLimit, Unreachable and OSError keep their class. Other foreseen exceptions become SandboxError,
        unforeseen ones RuntimeError.
        """
        raised = self._exception()
        raised.__cause__ = ChildTraceback(self.trace, self.place[:LONGEST_PLACE])
        return raised

    def _exception(self) -> Exception:
        from pipeline.media.container import MediaError  # imports PyAV, which a child needs only for its first file
        from pipeline.storage.store import Unreachable

        if not self.foreseen:
            return RuntimeError(self.message)
        if self.name == "OverLimit":
            return OverLimit(self.message, *self.options)
        classes: dict[str, type[Exception]] = {"MediaError": MediaError, "Unreachable": Unreachable}
        if self.name in classes:
            return classes[self.name](self.message)
        if self.errno is not None:
            return OSError(self.errno, self.strerror or self.message, self.filename)
        return SandboxError(self.message)


def encode_value(value: object) -> bytes:
    """Serialize the result of a function, built of None, numbers, strings, bytes, lists, dicts, arrays and dataclasses.
    Raises TypeError for anything else."""
    return _encode([True, value])


def encode_error(error: Exception) -> bytes:
    """Serialize the exception that a function raised."""
    filename = getattr(error, "filename", None)
    raised = RaisedInChild(
        name=type(error).__name__,
        message=str(error),
        foreseen=is_foreseen(error),
        is_out_of_memory=is_out_of_memory(error),
        errno=getattr(error, "errno", None),
        strerror=getattr(error, "strerror", None),
        filename=filename if isinstance(filename, str) else None,
        options=getattr(error, "options", ()) if isinstance(error, OverLimit) else (),
        trace=trace_of(error),
        place=place_of(error),
    )
    return _encode([False, raised])


def decode(answer: bytes, function: Callable[..., Result]) -> Result | RaisedInChild:
    """Return the result of `function`, converted to its declared type, or the exception that it raised. Raises
    SandboxError for malformed bytes."""
    try:
        returned, value = msgpack.unpackb(answer, use_list=True, unicode_errors="surrogatepass")
        result: Result | RaisedInChild = (_returned(function) if returned else _raised()).validate_python(value)
    except Exception as error:  # malicious bytes may raise any exception
        raise SandboxError("the process sent an answer that cannot be read") from error
    return result


def _encode(answer: list[object]) -> bytes:
    data: bytes = msgpack.packb(answer, default=_plain, unicode_errors="surrogatepass")
    return data


def _plain(value: Any) -> object:
    """Convert an object to a type that MessagePack supports. Raises TypeError if that is not possible."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Fraction):
        return str(value)
    if type(value).__module__ == "numpy":
        return value.tolist()  # arrays and scalars
    raise TypeError(f"an answer cannot hold a {type(value).__name__}")


@functools.lru_cache(maxsize=16)
def _returned(function: Callable[..., Any]) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(function).get("return", Any))


@functools.cache
def _raised() -> TypeAdapter[RaisedInChild]:
    return TypeAdapter(RaisedInChild)
