"""The one retry policy of HTTP requests: which answers are tried again, and how long to wait before."""

from __future__ import annotations

import contextlib
import random
import re

from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529))  # statuses that may change
FIRST_PAUSE = 0.5  # seconds before the second try; doubled for each further one


def pause(attempt: int, retry_after: str | None, longest: float, longest_asked: float) -> float:
    """Return the seconds to wait after the failed try number `attempt` (from 0).

    The wait grows exponentially up to `longest`, with jitter; a Retry-After header (seconds, or a date) makes it
    longer, up to `longest_asked`. A header of another form counts for nothing.
    """
    seconds = min(longest, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
    server_wait = 0.0
    if retry_after and re.fullmatch(r"\d{1,9}\.\d+", retry_after, re.ASCII):  # not in the standard, but in use
        server_wait = float(retry_after)
    elif retry_after:
        with contextlib.suppress(InvalidHeader, ValueError, OverflowError):
            server_wait = Retry().parse_retry_after(retry_after)
    return max(seconds, min(server_wait, longest_asked))
