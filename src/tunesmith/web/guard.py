"""Who is served: the Host and Origin of every request (websocket upgrades included), and the token where one is asked.

A web site that a person visits can make their browser send requests here, and by DNS rebinding even read the answers;
checking Host and Origin stops both. No cross-origin answer is ever allowed (no CORS headers).
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
NO_ANSWER = "No response returned."
"""Starlette's words for an application that ended without an answer."""
WILDCARDS = {"0.0.0.0", "::", ""}
# Everything comes from here: a page that asks for nothing elsewhere works offline and tells nobody anything.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host.lower() in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(value: str) -> str | None:
    """The name in a Host header, in lower case and without port and brackets; None when it is not a plain one."""
    try:
        parts = urlsplit(f"//{value}")
        _ = parts.port
    except ValueError:
        return None
    plain = not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
    return parts.hostname.lower() if plain and parts.hostname else None


@dataclass(frozen=True)
class Rules:
    """What is asked of a request. ``host`` is the bound address, ``token`` None where none is asked."""

    host: str
    port: int
    token: str | None = None

    @property
    def cookie(self) -> str:
        """Name of the token's cookie; cookies do not know ports, so the name does."""
        return f"tunesmith_token_{self.port}"

    def knows_host(self, name: str) -> bool:
        """Loopback names and the bound host. Bound to every address: this machine's name and addresses in digits,
        which a rebinding site cannot have."""
        if name in LOOPBACK_NAMES or name == self.host.lower():
            return True
        if self.host not in WILDCARDS:
            return False
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            own = socket.gethostname().lower()
            return name in {own, f"{own}.local"}

    def refusal(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Why a request with these headers is not served; None when it may be (the token aside)."""
        hosts = _all(headers, b"host")
        if len(hosts) != 1 or (name := host_name(hosts[0])) is None or not self.knows_host(name):
            return "this page is served under its own address only"
        for origin in _all(headers, b"origin"):
            if urlsplit(origin).netloc.lower() != hosts[0].lower() or not origin.lower().startswith("http"):
                return "requests from other sites are not served"
        navigates = "navigate" in _all(headers, b"sec-fetch-mode")
        if "cross-site" in _all(headers, b"sec-fetch-site") and not navigates:
            return "requests from other sites are not served"
        return None

    def token_fits(self, given: str | None) -> bool:
        return self.token is None or (
            given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())
        )

    def has_token(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether the token's cookie is there, or none is asked."""
        if self.token is None:
            return True
        for text in _all(headers, b"cookie"):
            try:
                morsel = SimpleCookie(text).get(self.cookie)
            except CookieError:
                continue
            if morsel is not None and self.token_fits(morsel.value):
                return True
        return False


class Guard:
    """ASGI middleware around the whole page."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = list(scope["headers"])
        refusal = self.rules.refusal(headers)
        if refusal is not None:
            await _refuse(scope, send, 403, refusal)
            return
        if not self.rules.has_token(headers):
            query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
            may_enter = scope["type"] == "http" and scope["method"] == "GET" and "token" in query
            if may_enter and self.rules.token_fits(query.pop("token")):
                await self._welcome(scope, query, send)
                return
            await _refuse(
                scope, send, 401, "This page asks for its token: open the address that `tunesmith web` printed.\n"
                "此页面需要令牌：请打开 `tunesmith web` 打印出的地址。",
            )  # fmt: skip
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        await _unless_gone(self.app, scope, receive, _with_headers(send))

    async def _welcome(self, scope: Scope, query: dict[str, str], send: Send) -> None:
        """First visit: keep the token in a cookie and go on to the address without it.

        A page that moves on by itself, not a redirect: a strict cookie would not be sent after one that another program
        or site began.
        """
        target = quote("/" + str(scope["path"]).lstrip("/")) + (f"?{urlencode(query)}" if query else "")
        script = json.dumps(target).replace("<", "\\u003c")
        body = (
            f'<!doctype html><meta charset="utf-8"><title>Tunesmith</title><script>location.replace({script})</script>'
        )
        cookie = f"{self.rules.cookie}={self.rules.token}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 200, body, b"text/html; charset=utf-8", [(b"set-cookie", cookie.encode())])


def quiet_when_gone(record: logging.LogRecord) -> bool:
    """A filter for NiceGUI's log: its page of errors reports the same before the guard is asked."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, RuntimeError) and str(error) == NO_ANSWER)


async def _unless_gone(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and be silent when the page was closed meanwhile: NiceGUI's middlewares (Starlette's BaseHTTPMiddleware) then find no answer
    and call that an error, whose traceback the server would print."""
    gone = False

    async def noting() -> Message:
        nonlocal gone
        message = await receive()
        gone = gone or message["type"] == "http.disconnect"
        return message

    try:
        await app(scope, noting, send)
    except RuntimeError as error:
        if not (gone and str(error) == NO_ANSWER):
            raise


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})
        return
    await _answer(send, status, reason + "\n", b"text/plain; charset=utf-8", [])


async def _answer(send: Send, status: int, body: str, kind: bytes, extra: list[tuple[bytes, bytes]]) -> None:
    data = body.encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(data)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS.items(), *extra]})
    await send({"type": "http.response.body", "body": data})


def _with_headers(send: Send) -> Send:
    """Add the safety headers, keep stricter ones that an answer brings, and let no CORS header out."""

    async def send_safe(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(k, v) for k, v in message.get("headers", []) if not k.lower().startswith(b"access-control-")]
            present = {k.lower() for k, _ in kept}
            message["headers"] = [*kept, *((k, v) for k, v in _HEADERS.items() if k not in present)]
        await send(message)

    return send_safe
