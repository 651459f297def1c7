"""Small HTTP manners shared by the hubs: short waits for a connection, plain words for what went wrong, proxies from
the environment (httpx reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

import httpx

CONNECT_SECONDS = 4.0
ANSWER_SECONDS = 8.0  # name look-up, connection and first answer together
TIMEOUT = httpx.Timeout(30.0, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
ERRORS = (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError, ValueError)
"""What opening a client and asking can raise: a SOCKS proxy without its package is an ImportError, a bad one a ValueError."""


def client() -> httpx.Client:
    """A client with short connection waits that follows redirects."""
    return httpx.Client(timeout=TIMEOUT, follow_redirects=True, headers={"User-Agent": "tunesmith"})


def offline_asked(offline: bool | None) -> bool:
    """``offline`` when it is given, else whether ``$TUNESMITH_OFFLINE``, ``$HF_HUB_OFFLINE`` or ``$TRANSFORMERS_OFFLINE`` asks."""
    if offline is not None:
        return offline
    names = ("TUNESMITH_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on") for name in names)


def plain(url: str) -> str:
    """``url`` without a user name or password, fit for messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def masked(text: str, secret: str | None) -> str:
    """``text`` without ``secret``."""
    return text.replace(secret, "…") if secret else text


def in_words(error: BaseException) -> str:
    """One short line on why a request failed."""
    text = str(error).strip().splitlines()
    detail = text[0] if text else type(error).__name__
    if isinstance(error, httpx.ProxyError):
        return f"the proxy refused ({detail})"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        unknown = any(
            part in detail.lower() for part in ("name or service", "nodename", "getaddrinfo", "name resolution")
        )
        return f"no such host can be found ({detail})" if unknown else f"no connection ({detail})"
    return detail


def why_silent(url: str) -> str | None:
    """None when a server answers at ``url``, else why not, in plain words; never takes much longer than ANSWER_SECONDS.

    Any answer below 500 counts, also 401 or 404. It runs in a thread of its own because a name look-up cannot be timed out.
    """
    return why_silent_each([url])[0]


def why_silent_each(urls: Sequence[str]) -> list[str | None]:
    """``why_silent`` for several addresses at the same time."""
    verdicts: list[str | None] = ["no answer in time"] * len(urls)

    def ask(position: int, url: str) -> None:
        try:
            with client() as http:
                status = http.head(url, timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)).status_code
            verdicts[position] = f"it answers HTTP {status}" if status >= 500 or status == 407 else None
        except ERRORS as error:
            verdicts[position] = in_words(error)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in enumerate(urls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_SECONDS + 1)
    return list(verdicts)
