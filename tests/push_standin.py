"""Hugging Face and ModelScope on loopback, as much of both as a push needs: repositories, git-LFS uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """``repos``: name -> path -> content, as committed. ``blobs``: what was uploaded, by SHA-256."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    refuse_after: int | None = None
    """Answer 500 to uploads once so many have arrived."""
    forbidden: bool = False
    tokens: set[str | None] = field(default_factory=set)
    cookies: set[str | None] = field(default_factory=set)
    uploads_at: str = ""
    """Another host that large files are sent to."""
    repeats: bool = False
    """Refuse, in words that repeat the token."""
    url: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None: ...

        def do_GET(self) -> None:
            path = self.begin()
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path):
                name = found[1]
                if name not in hub.repos:
                    self.json(404, {"error": "Repository not found"})
                    return
                siblings = [{"rfilename": file} for file in hub.repos.get(name, {})]
                self.json(200, {"id": name, "sha": "0" * 40, "private": hub.private[name], "siblings": siblings})
            elif found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)", path):
                there = found[1] in hub.repos
                data = {"Visibility": 1 if hub.private.get(found[1]) else 5} if there else None
                self.json(200 if there else 404, {"Code": 200 if there else 404, "Success": there, "Data": data})
            else:
                self.json(404, {})

        def do_PUT(self) -> None:
            path = self.begin()
            if hub.refuse_after is not None and len(hub.puts) >= hub.refuse_after:
                self.body()
                self.json(400, {})
                return
            content = self.body()
            digest = path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == digest
            hub.blobs[digest] = content
            hub.puts.append(digest)
            self.json(200, {})

        def do_POST(self) -> None:
            path, body = self.begin(), self.body()
            if hub.repeats:
                words = f"nothing is done for {self.headers.get('Authorization') or self.headers.get('Cookie')}"
                self.json(400, {"error": words, "Success": False, "Message": words})
            elif hub.forbidden:
                self.json(403, {"error": "forbidden", "Success": False, "Message": "no right"})
            elif path == "/api/validate-yaml":
                self.json(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                if name in hub.repos:
                    self.json(409, {"error": "exists", "url": f"{hub.url}/{name}"})
                    return
                hub.repos[name] = {}
                hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
                self.json(200, {"url": f"{hub.url}/{name}"})
            elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                files = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]  # fmt: skip
                self.json(200, {"files": files})
            elif re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                self.json(200, {"transfer": "basic", "objects": self.batch(body)})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.repos[found[1]][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.repos[found[1]][value["path"]] = hub.blobs[value["oid"]]
                    elif line["key"] == "deletedFile":
                        del hub.repos[found[1]][value["path"]]
                    else:
                        hub.commits.append(value["summary"])
                self.json(200, {"commitUrl": f"{hub.url}/{found[1]}/commit/{'1' * 40}", "commitOid": "1" * 40})
            elif path == "/api/v1/models":
                asked = json.loads(body)
                name = f"{asked['Path']}/{asked['Name']}"
                hub.repos[name], hub.private[name] = {}, asked["Visibility"] == 1
                self.json(200, {"Code": 200, "Success": True, "Data": {"Id": 1}})
            elif re.fullmatch(r"/api/v1/repos/models/([^/]+/[^/]+)/info/lfs/objects/batch", path):
                self.json(200, {"Code": 200, "Success": True, "Data": {"objects": self.batch(body)}})
            elif found := re.fullmatch(r"/api/v1/repos/models/([^/]+/[^/]+)/commit/master", path):
                asked = json.loads(body)
                for one in asked["actions"]:
                    content = hub.blobs[one["sha256"]] if one["type"] == "lfs" else base64.b64decode(one["content"])
                    assert len(content) == one["size"]
                    hub.repos[found[1]][one["path"]] = content
                hub.commits.append(asked["commit_message"])
                self.json(200, {"Code": 200, "Success": True, "Data": {}})
            else:
                self.json(404, {})

        def batch(self, body: bytes) -> list[dict[str, Any]]:
            found = []
            for one in json.loads(body)["objects"]:
                entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
                if one["oid"] not in hub.blobs:
                    entry["actions"] = {"upload": {"href": f"{hub.uploads_at or hub.url}/lfs/{one['oid']}"}}
                found.append(entry)
            return found

        def begin(self) -> str:
            hub.tokens.add(self.headers.get("Authorization"))
            hub.cookies.add(self.headers.get("Cookie"))
            return unquote(urlsplit(self.path).path)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def json(self, status: int, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends; ``hub.url`` is where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
