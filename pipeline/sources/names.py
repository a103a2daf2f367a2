r"""Names of files as text. Linux file names are bytes; tables, JSON and pages hold Unicode.

Each byte of a name that is not valid UTF-8 is written as \xHH (two upper-case hex digits). A backslash that already
stands before such a sequence is written as \x5C, so that `from_text` gives back the name. All other names stay as they
are: `to_text(b"caf\xe9.mp4")` is `caf\xE9.mp4`, and `café.mp4` in UTF-8 is `café.mp4`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pipeline.config.secrets import redact

_ESCAPE = re.compile(r"\\x([0-9A-F]{2})")
_UNCLEAN = re.compile(r"[\ud800-\udfff]|\\(?=x[0-9A-F]{2})")


def to_text(name: str) -> str:
    """Return the text of a file name as `os.fsdecode` gives it. Raises no error, whatever the string holds."""
    return _UNCLEAN.sub(lambda match: "".join(f"\\x{byte:02X}" for byte in _bytes(match[0])), name)


def from_text(text: str) -> str:
    """Return the file name, as `os.fsencode` takes it, whose text is `text`."""
    if not _ESCAPE.search(text):
        return text
    data = b"".join(
        bytes.fromhex(part) if i % 2 else part.encode("utf-8", "surrogatepass")
        for i, part in enumerate(_ESCAPE.split(text))
    )
    return data.decode("utf-8", "surrogateescape")


def url_text(url: str) -> str:
    """Return `url` with what is not valid UTF-8 percent-encoded."""
    return re.sub(r"[\ud800-\udfff]", lambda match: quote(_bytes(match[0])), url)


def clean(value: Any) -> Any:
    """Return a metadata value with `to_text` of every string in it, also in lists and mappings."""
    if isinstance(value, str):
        return to_text(value) if re.search(r"[\ud800-\udfff]", value) else value
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def printable(text: str, lines: bool = False) -> str:
    r"""Return `text` as it may go to a terminal or a log: without secrets, and with control, bidirectional and
    other invisible characters as \uHHHH. Line feeds stay where `lines` is set."""
    return "".join(
        character if _shows(character) or (lines and character == "\n") else _escaped(character)
        for character in redact(text)
    )


def _shows(character: str) -> bool:
    return (character.isascii() and character.isprintable()) or unicodedata.category(character)[0] not in "CZ"


def _escaped(character: str) -> str:
    code = ord(character)
    if character in " \u3000\u00a0":
        return character
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _bytes(character: str) -> bytes:
    code = ord(character)
    return bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else character.encode("utf-8", "surrogatepass")
