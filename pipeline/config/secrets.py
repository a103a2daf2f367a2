"""Secrets in texts: URLs with credentials or presigned queries, bearer tokens and API keys."""

from __future__ import annotations

import re

_NAME = r"(?:[^=&\s]*(?:secret|password|credential|access_?key|account_key|api_?key|token|signature)[^=&\s]*|sig)"
IN_URL = re.compile(rf"://[^/@\s]*:[^/@\s]*@|https?://[^/?#@\s]*@|[?&]{_NAME}=", re.I)
_USER = re.compile(r"(://)[^/@\s'\"]*@")
_QUERY = re.compile(rf"([?&]{_NAME}=)[^&\s'\"<>]*", re.I)
_TOKEN = re.compile(r"\b(Bearer\s+|hf_|sk-)[\w.~+/=-]{12,}")


def redact(text: str) -> str:
    """Return `text` with the credentials of its URLs, the values of presigned queries, and tokens as ***."""
    return _TOKEN.sub(r"\1***", _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text)))
