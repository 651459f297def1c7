"""What every caller of an Ollama server needs: where it is, which names it takes, what its errors mean.

Nothing here knows what is asked or deployed.
"""

from __future__ import annotations

import html
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
LONGEST = 500
"""So much of an error's text is told (characters)."""


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


def same_model(one: str, other: str) -> bool:
    """Whether Ollama takes two names for one model: the tag latest, the namespace library and its own registry may be left out,
    and capitals mean nothing. Source: ``ParseName`` in Ollama's ``types/model/name.go``, ``getExistingName`` in ``server/routes.go``."""
    return _whole(one) == _whole(other)


def _whole(name: str) -> str:
    head, _, last = name.lower().rpartition("/")
    registry, _, namespace = head.rpartition("/")
    tagged = last if ":" in last else f"{last}:latest"
    return f"{registry or 'registry.ollama.ai'}/{namespace or 'library'}/{tagged}"


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


class ServerGoneError(ServerError):
    """No answer came at all: no connection, or one that broke. What was asked is neither done nor refused."""


def unreachable(url: str, error: Exception, doing: str) -> ServerGoneError:
    """The error for a connection that was not made, or that broke while ``doing`` (“creating x”)."""
    import httpx

    words = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return ServerGoneError(
            f"the certificate of {url} is not one that this machine trusts ({words.rpartition('] ')[2]})",
            hint="set SSL_CERT_FILE to the certificate that it is signed with; nothing was sent",
        )
    if "SSL" in words and "WRONG_VERSION" in words.upper():
        return ServerGoneError(
            f"what answers at {url} does not speak https", hint=f"try --url {url.replace('https:', 'http:', 1)}"
        )
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError)):
        return ServerGoneError(
            f"no Ollama server answers at {url}",
            hint="start it (`ollama serve`, or the Ollama app), or give the address where it runs (OLLAMA_HOST, or --url of deploy)",
        )
    if isinstance(error, httpx.TimeoutException):
        return ServerGoneError(
            f"Ollama at {url} did not answer in time while {doing}",
            hint="look at the server's log: a model too large for its memory is the usual reason",
        )
    return ServerGoneError(
        f"the connection to Ollama at {url} broke while {doing} ({type(error).__name__})",
        hint="see whether the server still runs (it may have run out of memory or disk), then do the same again",
    )


def refused(doing: str, status: int | None, text: str) -> ServerError:
    """The error for a refusal: an HTTP status ≥ 400 with its body, or an error line in a stream (``status`` None)."""
    message = error_text(text)
    code = "" if status is None or status < 400 else f" ({status})"
    if _is_page(text):
        return ServerError(
            f"a web page came in place of Ollama's answer{code} while {doing}: {message}",
            hint="a proxy stands between here and Ollama: it may limit the size or time of a request, or not reach Ollama; its log says more",
        )
    return ServerError(f"Ollama refused{code} while {doing}: {message}", hint=_hint(message, status))


def redirected(url: str, status: int, location: str, doing: str) -> ServerError:
    """The error for an answer that sends elsewhere: it is not followed, since a model would go to a server that nobody named."""
    where = f"to {location}" if location else "elsewhere"
    return ServerError(
        f"{url} sends {where} ({status}) while {doing}",
        hint="name the address that it leads to with --url (or OLLAMA_HOST), without /api/…; nothing was sent there",
    )


def not_ollama(url: str) -> ServerError:
    """The error for an answer that is not Ollama's kind of JSON."""
    return ServerError(
        f"what answers at {url} is not Ollama",
        hint="give the address where Ollama runs (OLLAMA_HOST, or --url of deploy)",
    )


def error_text(body: str) -> str:
    """Ollama's own words in a body that is ``{"error": …}``, plain text or empty; of a web page its title."""
    try:
        found = json.loads(body)
    except ValueError:
        if _is_page(body):
            title = re.search(r"<(title|h1)[^>]*>(.*?)</\1>", body, re.IGNORECASE | re.DOTALL)
            return " ".join(html.unescape(title[2]).split())[:LONGEST] if title else "it has no title"
        return " ".join(body.split())[:LONGEST] or "no reason was given"
    if isinstance(found, Mapping) and "error" in found:
        return str(found["error"])
    return body.strip()[:LONGEST]


def _is_page(body: str) -> bool:
    return bool(re.match(r"\s*<(!doctype|html|head|body|\?xml)", body, re.IGNORECASE))


_HINTS = {
    "not found": "see `ollama list` for the names it has",
    "no such file": "the server lost the uploaded file: deploy again",
    "digest mismatch": "the file changed while it was sent, or was damaged on the way: deploy again",
    "no space left": "free disk space where the server keeps its models ($OLLAMA_MODELS)",
    "not in gguf format": "export the model with `--to gguf` first",
    "unsupported architecture": "export the model with `--to gguf`, which Ollama can run for more architectures",
    "unknown type": "this server is too old to take files: update Ollama",
    "neither 'from' or 'files'": "this server is too old to take files: update Ollama",
    "modelfile are required": "this server is too old to take files: update Ollama",
    "can't evaluate field": "this server is too old for this chat template: update Ollama",
    "must be of type": "a parameter of the model has a wrong type: deploy it again with right ones",
    "system memory": "close other programs, or export with a smaller quantization",
    "template error": "the chat template is not one that Ollama can read",
}


def _hint(message: str, status: int | None) -> str:
    lower = message.lower()
    for words, hint in _HINTS.items():
        if words in lower:
            return hint
    if status == 413:
        return "a proxy in between takes no files of this size: raise its limit, or go past it"
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
