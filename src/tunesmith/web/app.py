"""The page's process: one address, everything it serves, and who may ask. It holds no state of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from nicegui import core, ui

from tunesmith.config.errors import UserError
from tunesmith.web import data_page, list_page, new_page, run_files, run_page, use_page
from tunesmith.web.commands import COMMAND
from tunesmith.web.guard import WILDCARDS, Guard, Rules, is_loopback, quiet_when_gone


def serve(host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False, token: str | None = None) -> None:
    """Serve the page until interrupted; prints its address first.

    Another address than this machine's own asks for a token: the given one, or a new one that stands in the printed
    address. Raises UserError when the address cannot be listened on.
    """
    serve_with(COMMAND, host, port, open_browser, token)


def serve_with(command: Sequence[str], host: str, port: int, open_browser: bool, token: str | None) -> None:
    """``serve`` with another ``tunesmith`` command."""
    token = token_for(host, token)
    listening = listen(host, port)
    port = listening.getsockname()[1]
    address = address_of(host, port, token)
    app = build(command, Rules(host, port, token))
    print(f"Tunesmith is at {address}", flush=True)
    print("Runs go on when it is closed. Ctrl-C ends the page only.", flush=True)
    if open_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="wsproto", proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def token_for(host: str, token: str | None) -> str | None:
    """The token to ask for: the given one; a new one where others can reach the page; else none.

    Raises UserError for one that cannot stand in an address and a cookie.
    """
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if not token or not all((c.isascii() and c.isalnum()) or c in "-_.~" for c in token):
        raise UserError("a token is made of letters, digits and - _ . ~", hint="leave --token out to get one")
    return token


def address_of(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    name = socket.gethostname() if host in WILDCARDS else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the port is taken or the address is not this machine's."""
    place = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
    except (OSError, OverflowError) as error:
        raise UserError(f"{host!r} is not an address of this machine ({error})", hint="leave --host out") from error
    listening = socket.socket(family, kind, protocol)
    if os.name != "nt":  # there it would let two programs share one port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            hint = f"if that is Tunesmith, open {address_of(host, port, None)}; else choose another: --port {port + 1}"
            raise UserError(f"{place} is already in use by another program", hint=hint) from error
        raise UserError(f"cannot listen on {place}: {error}", hint="choose another --port or --host") from error
    return listening


def build(command: Sequence[str], rules: Rules) -> FastAPI:
    """The whole page as an ASGI app behind its guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    folder = Path(__file__).parent / "static"

    @app.get("/static/{name}")
    def static_file(name: str) -> Response:
        path = folder / name
        if name not in {p.name for p in folder.iterdir()}:
            return PlainTextResponse("not found", status_code=404)
        return FileResponse(path, headers={"cache-control": "no-cache"})

    @app.get("/run/{id}/files/{name:path}")
    def run_file(id: str, name: str) -> Response:
        run = run_files.known_run(id)
        path = run_files.confined(run, name) if run is not None else None
        if path is None:
            return PlainTextResponse("not found", status_code=404)
        kind, shown = run_files.served_as(path)
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}
        return FileResponse(
            path,
            media_type=kind,
            headers=headers,
            filename=None if shown else path.name,
            content_disposition_type="inline" if shown else "attachment",
        )

    list_page.register(command)
    run_page.register(command)
    use_page.register(command)
    new_page.register(command)
    data_page.register(command)
    core.sio.eio.cors_allowed_origins = []  # answers carry no CORS headers; the guard looks at Origin itself
    ui.run_with(
        app,
        title="Tunesmith",
        favicon=folder / "favicon.svg",
        dark=None,
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=10.0,
        show_welcome_message=False,
    )
    logging.getLogger("nicegui").addFilter(quiet_when_gone)
    app.add_middleware(Guard, rules=rules)
    return app
