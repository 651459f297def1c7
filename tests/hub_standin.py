"""Hugging Face and ModelScope on loopback: a real HTTP server that speaks as much of both APIs as a download needs, and
that can misbehave on demand (cut a connection, send other bytes, ignore ranges, stall)."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from safetensors.numpy import save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Standin:
    """The server's models, data sets and manners. ``requests`` holds (method, path, Range header) of everything asked for."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    data: dict[str, dict[str, bytes]] = field(default_factory=dict)  # data sets
    packages: dict[str, bytes] = field(default_factory=dict)  # file name -> wheel, for the package index
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)  # file -> close the connection after so many bytes, once
    stall: dict[str, int] = field(default_factory=dict)  # file -> stop sending after so many bytes until `go_on`, once
    wrong: set[str] = field(default_factory=set)  # files sent with other bytes than listed
    ranges: bool = True
    status: dict[str, int] = field(default_factory=dict)  # file -> answer this status
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)  # repositories that Hugging Face was asked about
    url: str = ""

    def gets(self, file: str) -> list[str | None]:
        """The Range header of each GET of ``file``."""
        return [asked for method, path, asked in self.requests if method == "GET" and path == file]


def handler(standin: Standin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), parse_qs(parts.query)
            standin.tokens.append(self.headers.get("Authorization"))
            if found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path):
                self.modelscope(found[1], bool(found[2]), query, standin.models)
            elif found := re.fullmatch(r"/api/v1/datasets/([^/]+/[^/]+)/repo(/tree)?", path):
                self.modelscope(found[1], bool(found[2]), query, standin.data)
            elif found := re.fullmatch(r"/api/datasets/((?:[^/]+/)?[^/]+?)(?:/(revision|tree)/(.+))?", path):
                self.hugging_face(found[1], found[2] or "revision", found[3] or "main", standin.data)
            elif found := re.fullmatch(r"/datasets/((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(found[1], found[3], standin.data)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
                self.hugging_face(found[1], found[2] or "revision", found[3] or "main", standin.models)
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(found[1], found[3], standin.models)
            elif path.startswith("/files/"):
                name = path.rpartition("/")[2]
                self.file(name, standin.packages[name], {})
            elif re.fullmatch(r"/simple/[^/]+/", path):
                links = [f'<a href="../../files/{name}#sha256=0">{name}</a><br>' for name in standin.packages]
                self.send(
                    200 if links else 404, f"<html>{''.join(links)}</html>".encode(), {"Content-Type": "text/html"}
                )
            else:
                self.send(404, b"{}")

        def resolve(self, name: str, file: str, repositories: dict[str, dict[str, bytes]]) -> None:
            if name in standin.gated:
                self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                return
            content = repositories[name][file]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.file(file, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

        def modelscope(
            self, name: str, listing: bool, query: dict[str, list[str]], repositories: dict[str, dict[str, bytes]]
        ) -> None:
            files = repositories.get(name)
            if files is None or query.get("Revision", ["master"])[0] not in ("master", "v1"):
                self.send(404, b'{"Code": 10010205001, "Success": false, "Message": "record not found"}')
            elif listing:
                if query.get("PageNumber", ["1"])[0] != "1":
                    files = {}
                entries: list[dict[str, Any]] = [{"Path": "folder", "Type": "tree", "Size": 0}]
                for path, content in files.items():
                    sha256 = hashlib.sha256(content).hexdigest()
                    entries.append({"Path": path, "Type": "blob", "Size": len(content), "Sha256": sha256})
                self.send(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": entries}}).encode())
            else:
                file = query["FilePath"][0]
                self.file(file, files[file], {})

        def hugging_face(self, name: str, what: str, revision: str, repositories: dict[str, dict[str, bytes]]) -> None:
            files = repositories.get(name)
            if files is None:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", COMMIT):
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif what == "tree":
                entries = [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                        "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100},
                    }
                    for path, content in files.items()
                ]
                self.send(200, json.dumps(entries).encode())
            else:
                siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
                standin.asked.append(f"{name}@{revision}")
                self.send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

        def file(self, file: str, content: bytes, headers: dict[str, str]) -> None:
            asked = self.headers.get("Range")
            standin.requests.append((self.command, file, asked))
            if file in standin.status:
                self.send(standin.status[file], b"")
                return
            if file in standin.wrong:
                content = bytes(len(content))
            start, end, status, total = 0, len(content), 200, len(content)
            if asked and standin.ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or total), total - 1)
                if start >= total:
                    self.send(416, b"", {"Content-Range": f"bytes */{total}"})
                    return
                status = 206
                headers = {**headers, "Content-Range": f"bytes {start}-{end}/{total}"}
            body = content[start : end + 1]
            if self.command == "GET" and file in standin.cut:
                self.send(status, body, headers, stop=standin.cut.pop(file))
                self.close_connection = True
            elif self.command == "GET" and file in standin.stall:
                self.send(status, body, headers, stop=standin.stall.pop(file))
                standin.stalled.set()
                standin.go_on.wait(60)
                self.close_connection = True
            else:
                self.send(status, body, headers)

        def send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, stop: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:stop])
                self.wfile.flush()

    return Handler


@contextmanager
def serving(standin: Standin) -> Iterator[Standin]:
    """Serve until the block ends; ``standin.url`` is where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(standin))
    server.daemon_threads = True
    standin.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield standin
    finally:
        standin.go_on.set()
        server.shutdown()
        server.server_close()


def write_model(folder: Path, shards: int = 1, elements: int = 64) -> Path:
    """A folder that looks like a model: config.json, safetensors by the real writer, tokenizer, licence."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{i}.weight": rng.standard_normal((elements, 4)).astype(np.float32) for i in range(max(shards, 2))
    }
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 4}', encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "LICENSE").write_text("Apache License, Version 2.0", encoding="utf-8")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    table = {}
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        save_file({name: tensor}, folder / file, metadata={"format": "pt"})
        table[name] = file
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """path -> bytes of everything in ``folder``."""
    return {str(p.relative_to(folder).as_posix()): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Counting:
    """A Progress that remembers: tasks with their totals, what was advanced in the last one, and the lines said."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float | None, str]] = []
        self.lines: list[str] = []
        self.done = 0.0

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        self.tasks.append((task, total, unit))
        self.done = 0.0

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def finish(self, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)
