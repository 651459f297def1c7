"""Who is served: unit tests of the rules, and a really running page asked over loopback."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tunesmith.config.errors import UserError
from tunesmith.runs.folder import RunFolder
from tunesmith.web.app import address_of, listen, token_for
from tunesmith.web.guard import NO_ANSWER, Guard, Rules, host_name, is_loopback
from web_server import Server


def refused(rules: Rules, **headers: str) -> bool:
    given = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return rules.refusal(given) is not None


def test_hosts() -> None:
    rules = Rules("127.0.0.1", 7860)
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860", "localhost:9999", "LOCALHOST"):
        assert not refused(rules, host=host), host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example:7860",
        "10.0.0.5:7860",
        "",
        "a@localhost",
        "localhost/x",
        "[::1",
    ):
        assert refused(rules, host=host), host
    assert rules.refusal([]) and rules.refusal([(b"host", b"localhost"), (b"host", b"localhost")])
    assert not refused(Rules("192.168.1.5", 7860), host="192.168.1.5:7860")
    assert refused(Rules("192.168.1.5", 7860), host="192.168.1.6:7860")
    everywhere = Rules("0.0.0.0", 7860)
    assert not refused(everywhere, host="192.168.1.5:7860") and not refused(everywhere, host=socket.gethostname())
    assert refused(everywhere, host="evil.example:7860")


def test_origins() -> None:
    rules = Rules("127.0.0.1", 7860)
    assert not refused(rules, host="localhost:7860", origin="http://localhost:7860")
    for origin in ("http://evil.example", "null", "http://localhost:8000", "http://localhost", "file://localhost:7860"):
        assert refused(rules, host="localhost:7860", origin=origin), origin
    assert refused(rules, host="localhost:7860", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")
    assert not refused(rules, host="localhost:7860", sec_fetch_site="cross-site", sec_fetch_mode="navigate")


def test_loopback_names() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.org", "")))
    assert host_name("[::1]:80") == "::1" and host_name("a:b") is None


def test_another_address_gets_a_token() -> None:
    assert token_for("127.0.0.1", None) is None
    made = token_for("0.0.0.0", None)
    assert made is not None and len(made) >= 24 and made != token_for("0.0.0.0", None)
    assert token_for("0.0.0.0", "mine") == "mine" and token_for("127.0.0.1", "mine") == "mine"
    assert address_of("192.168.1.5", 1, "t") == "http://192.168.1.5:1/?token=t"
    with pytest.raises(UserError, match="token"):
        token_for("0.0.0.0", "a b;c")
    with pytest.raises(UserError, match="token"):
        token_for("0.0.0.0", "")


def test_a_busy_port_is_said_with_a_way_out() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} is already in use") as caught:
            listen("127.0.0.1", port)
    assert f"--port {port + 1}" in str(caught.value)
    with pytest.raises(UserError, match=r"203\.0\.113\.7"):
        listen("203.0.113.7", 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def run(server: Server) -> RunFolder:
    run = RunFolder.create("model: demo\n", "guarded", server.home / "runs")
    run.artifacts.mkdir()
    (run.artifacts / "loss.svg").write_text("<svg/>")
    (run.artifacts / "report.html").write_text("<script>alert(1)</script>")
    (server.home / "secret.txt").write_text("secret")
    (run.artifacts / "out.txt").symlink_to(server.home / "secret.txt")
    return run


def ask(server: Server, path: str, **headers: str) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.get(f"http://127.0.0.1:{server.port}{path}", headers=headers)


def upgrade(server: Server, **headers: str) -> int:
    """The status of a websocket upgrade request on the page's socket."""
    lines = {
        "Host": f"127.0.0.1:{server.port}", "Connection": "Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **headers,
    }  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        text = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
        connection.sendall(f"GET {path} HTTP/1.1\r\n{text}\r\n".encode())
        return int(connection.recv(200).split()[1])


def test_pages_ask_for_nothing_elsewhere(server: Server, run: RunFolder) -> None:
    for path in ("/", "/new", "/data?data=lantern_bay", f"/run/{run.id}"):
        answer = ask(server, path)
        assert answer.status_code == 200
        outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", answer.text)) - {"http://www.w3.org"}
        assert outside == set(), path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not [h for h in answer.headers if h.startswith("access-control")]
    for path in ("/docs", "/redoc", "/openapi.json", "/run/nope"):
        assert ask(server, path).status_code == 404, path


def test_other_hosts_and_origins_are_turned_away(server: Server) -> None:
    assert ask(server, "/", Host="evil.example").status_code == 403
    assert ask(server, "/", Host=f"localhost:{server.port}").status_code == 200
    assert ask(server, "/", Origin="http://evil.example").status_code == 403
    polling = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert ask(server, polling, Origin="http://evil.example").status_code == 403
    answer = ask(server, polling, Origin=f"http://127.0.0.1:{server.port}")
    assert not [h for h in answer.headers if h.startswith("access-control")]


def test_websocket_upgrades_are_checked_too(server: Server) -> None:
    assert upgrade(server) == 101
    assert upgrade(server, Origin=f"http://127.0.0.1:{server.port}") == 101
    assert upgrade(server, Origin="http://evil.example") == 403
    assert upgrade(server, Host="evil.example") == 403


def test_files_of_runs_do_not_lead_out(server: Server, run: RunFolder) -> None:
    base = f"/run/{run.id}/files"
    picture = ask(server, f"{base}/artifacts/loss.svg")
    assert picture.status_code == 200 and "sandbox" in picture.headers["content-security-policy"]
    page = ask(server, f"{base}/artifacts/report.html")
    policy = page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html") and page.headers["x-content-type-options"] == "nosniff"
    assert policy.endswith("; sandbox") and "default-src 'none'" in policy and "script-src" not in policy
    for path in (
        f"{base}/artifacts/out.txt", f"{base}/..%2f..%2fsecret.txt", f"{base}/%2e%2e/%2e%2e/secret.txt",
        f"{base}//etc/passwd", "/run/..%2f..%2f/files/secret.txt", "/run/%2e%2e/files/secret.txt", "/static/..%2fapp.py",
    ):  # fmt: skip
        answer = ask(server, path)
        assert answer.status_code == 404 and "secret" not in answer.text.replace("secret.txt", ""), path


def test_a_token_is_asked_kept_in_a_strict_cookie_and_leaves_the_address(tmp_path: Path) -> None:
    with Server(tmp_path, 0, "127.0.0.1", "open-sesame") as server:
        assert server.address.endswith("/?token=open-sesame")
        for path in (
            "/",
            "/?token=wrong",
            "/?token=",
            "/static/page.css",
            "/_nicegui_ws/socket.io/?EIO=4&transport=polling",
        ):
            assert ask(server, path).status_code == 401, path
        assert upgrade(server) == 403
        with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{server.port}") as client:
            first = client.get("/new?token=open-sesame&from=x")
            cookie = first.headers["set-cookie"]
            assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "/new?from=x" in first.text
            assert client.get("/").status_code == 200
        named = f"tunesmith_token_{server.port}"
        assert upgrade(server, Cookie=f"{named}=open-sesame") == 101
        assert upgrade(server, Cookie=f"{named}=open-sesamE") == 403
        assert sum("open-sesame" in line for line in server.said) == 1


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_page_is_no_error(closed: bool) -> None:
    """Starlette's middleware calls an application without an answer an error; it is none when nobody waits for one any more."""
    from starlette.middleware.base import BaseHTTPMiddleware

    async def page(scope: Any, receive: Any, send: Any) -> None:
        while closed and (await receive())["type"] != "http.disconnect":
            pass

    async def through(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"host", b"localhost")]}
    asked = Guard(BaseHTTPMiddleware(page, through), Rules("127.0.0.1", 7860))(scope, receive, send)
    if closed:
        asyncio.run(asked)
        assert sent == []
    else:
        with pytest.raises(RuntimeError, match=NO_ANSWER):
            asyncio.run(asked)
