"""Cookies for sources behind a login, from a file in Netscape's format as browsers' add-ons and yt-dlp write it."""

from __future__ import annotations

import http.cookiejar
from pathlib import Path


def read_cookies(path: str) -> http.cookiejar.CookieJar:
    """Return the cookies of a file. Raises ValueError for a file that is missing or no such file; the message holds no
    cookie."""
    jar = http.cookiejar.MozillaCookieJar()
    try:
        jar.load(str(Path(path).expanduser()), ignore_discard=True, ignore_expires=True)
    except http.cookiejar.LoadError as error:
        raise ValueError(
            f"sources.cookies: {path} is not a cookies file in Netscape's format (the first line is "
            "'# Netscape HTTP Cookie File')"
        ) from error
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"sources.cookies: {path} cannot be read: {problem}") from error
    for cookie in jar:
        if cookie.expires == 0:  # how exporters write a cookie of the browser's session
            cookie.expires = None
    return jar
