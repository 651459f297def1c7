"""What every caller of an Ollama server needs: where it is, which names it takes, what its errors mean.

Nothing here knows what is asked or deployed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import ServerError, UserError

if TYPE_CHECKING:
    import httpx

DEFAULT_PORT = 11434
KEY = "OLLAMA_API_KEY"
CONNECT_SECONDS = 2.0
READ_SECONDS = 600.0
"""A CPU may need minutes to load a model and to read a long question before it sends the first byte."""


def address(value: str | None = None) -> str:
    """Base URL of the server, without a trailing slash: ``value``, else ``$OLLAMA_HOST``, else 127.0.0.1:11434.

    Read as Ollama's own clients do: ``host``, ``host:port``, ``:port``, ``[v6]:port`` or a URL with http (port 80) or
    https (443) and perhaps a path; quotes and spaces around it are dropped. The addresses that mean "all of this
    machine" to a server (0.0.0.0, ::) become loopback. Raises UserError for what is none of these.
    """
    text = (value if value is not None else os.environ.get("OLLAMA_HOST", "")).strip().strip("\"'").strip()
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    if scheme not in {"http", "https"}:
        raise _bad_address(text)
    default = {"http": 80, "https": 443}[scheme] if found else DEFAULT_PORT
    if _is_ip(rest) and ":" in rest:
        rest = f"[{rest}]"
    try:
        parts = urllib.parse.urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError as error:
        raise _bad_address(text) from error
    if not re.fullmatch(r"[\w.:%-]+", host):
        raise _bad_address(text)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    path = parts.path.strip("/")
    return f"{scheme}://{shown}:{default if port is None else port}" + (f"/{path}" if path else "")


def is_loopback(url: str) -> bool:
    """Whether ``url`` names this machine without looking the name up."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def remote_warning(url: str) -> str | None:
    """One sentence to show before anything is sent to a server that is not on this machine; None when it is."""
    if is_loopback(url):
        return None
    how = "" if url.startswith("https:") else ", unencrypted"
    kept = f"; ${KEY} is not sent there" if os.environ.get(KEY) and not _takes_key(url) else ""
    return (
        f"{url} is another machine: the model and every question travel over the network{how}, and whoever reaches that "
        f"address can change its models, since Ollama asks for no password{kept}"
    )


def check_name(name: str) -> str:
    """``name`` when Ollama takes it: ``[[registry/]namespace/]model[:tag]``. Raises UserError saying which part is wrong.

    Each part begins with a letter, digit or underscore and goes on with these, ``-`` and ``.`` (no dot in a namespace);
    at most 80 characters, a registry 350. Source: ``isValidPart`` in Ollama's ``types/model/name.go``.
    """
    head, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    parts = {"model": model}
    if colon:
        parts["tag"] = tag
    if slash:
        registry, two, namespace = head.rpartition("/")
        parts["namespace"] = namespace
        if two:
            parts["registry"] = registry
    for part, text in parts.items():
        more = {"registry": ".:", "namespace": ""}.get(part, ".")
        most = 350 if part == "registry" else 80
        if not re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9_{more}-]{{0,{most - 1}}}", text):
            raise UserError(
                f"{name!r} is no name for an Ollama model: its {part} is {text!r}",
                hint="use letters, digits, '-', '_' and '.', for example my-model or my-model:v2; nothing was sent",
            )
    return name


def http_client(url: str) -> httpx.Client:
    """A client for ``url``: 2 s to connect, minutes to answer. A proxy from the environment is never used for loopback."""
    import httpx

    return httpx.Client(base_url=url, **client_options(url))


def client_options(url: str) -> dict[str, Any]:
    """The httpx settings of `http_client`, for the official client, which passes them on.

    The key of ``$OLLAMA_API_KEY`` goes to this machine and over https, never readable through a network; the official client would
    add it by itself, so it is taken off each request.
    """
    import httpx

    key = os.environ.get(KEY)

    def without_key(request: httpx.Request) -> None:
        request.headers.pop("Authorization", None)

    return {
        "timeout": httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        "trust_env": not is_loopback(url),
        "follow_redirects": False,
        "headers": {"Authorization": f"Bearer {key}"} if key and _takes_key(url) else {},
        "event_hooks": {"request": [] if _takes_key(url) else [without_key]},
    }


def _takes_key(url: str) -> bool:
    return is_loopback(url) or url.startswith("https:")


def unreachable(url: str, error: Exception, doing: str) -> ServerError:
    """The error for a connection that was not made, or that broke while ``doing`` (“creating x”)."""
    import httpx

    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError)):
        return ServerError(
            f"no Ollama server answers at {url}",
            hint="start it (`ollama serve`, or the Ollama app), or give the address where it runs (OLLAMA_HOST, or --url of deploy)",
        )
    if isinstance(error, httpx.TimeoutException):
        return ServerError(
            f"Ollama at {url} did not answer in time while {doing}",
            hint="look at the server's log: a model too large for its memory is the usual reason",
        )
    return ServerError(
        f"the connection to Ollama at {url} broke while {doing} ({type(error).__name__})",
        hint="see whether the server still runs (it may have run out of memory or disk), then do the same again",
    )


def refused(doing: str, status: int | None, text: str) -> ServerError:
    """The error for a refusal: an HTTP status ≥ 400 with its body, or an error line in a stream (``status`` None)."""
    message = error_text(text)
    code = "" if status is None or status < 400 else f" ({status})"
    return ServerError(f"Ollama refused{code} while {doing}: {message}", hint=_hint(message, status))


def not_ollama(url: str) -> ServerError:
    """The error for an answer that is not Ollama's kind of JSON."""
    return ServerError(
        f"what answers at {url} is not Ollama",
        hint="give the address where Ollama runs (OLLAMA_HOST, or --url of deploy)",
    )


def error_text(body: str) -> str:
    """Ollama's own words in a body that is ``{"error": …}``, plain text or empty."""
    try:
        found = json.loads(body)
    except ValueError:
        return body.strip() or "no reason was given"
    if isinstance(found, Mapping) and "error" in found:
        return str(found["error"])
    return body.strip()


_HINTS = {
    "not found": "see `ollama list` for the names it has",
    "no such file": "the server lost the uploaded file: deploy again",
    "digest mismatch": "the file changed while it was sent, or was damaged on the way: deploy again",
    "no space left": "free disk space where the server keeps its models ($OLLAMA_MODELS)",
    "not in gguf format": "export the model with `--to gguf` first",
    "unsupported architecture": "export the model with `--to gguf`, which Ollama can run for more architectures",
    "unknown type": "this server is too old to take files: update Ollama",
    "neither 'from' or 'files'": "this server is too old to take files: update Ollama",
    "must be of type": "a parameter of the model has a wrong type: deploy it again with right ones",
    "system memory": "close other programs, or export with a smaller quantization",
    "template error": "the chat template is not one that Ollama can read",
}


def _hint(message: str, status: int | None) -> str:
    lower = message.lower()
    for words, hint in _HINTS.items():
        if words in lower:
            return hint
    if status in {401, 403}:
        return "the server wants a key (OLLAMA_API_KEY), or does not allow this address"
    return "the server's log (`ollama serve`, or the app's log file) says more"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _bad_address(text: str) -> UserError:
    return UserError(
        f"{text!r} is no address of an Ollama server",
        hint="write it (--url, or OLLAMA_HOST) as http://host:port, for example http://127.0.0.1:11434",
    )
