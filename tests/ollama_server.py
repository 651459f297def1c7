"""A small server that speaks Ollama's protocol on loopback, for tests.

Statuses, error texts and the shapes of answers come from exchanges recorded with a real Ollama 0.24 (``recorded/ollama``).
It checks what the real one checks (digests, names, GGUF magic, templates) and lets pass what the real one lets pass
(wrong parameter types, which break the chat later; files that are no whole model). Prompts are rendered by Go's own
text/template and answered by the uploaded GGUF in llama.cpp (``ollama_models``); without ``runs`` by a recorded answer.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gguf_mutations import in_another_order
from ollama_models import Answered, Runner, capabilities, render
from tunesmith.export.gguf_file import read_gguf
from tunesmith.export.go_text import GoTemplateError

RECORDED = Path(__file__).parent / "recorded" / "ollama"
AUTODETECTED = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)


def recorded(name: str) -> dict[str, Any]:
    """One recorded exchange: ``request`` and ``response``."""
    return dict(json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8")))


def recorded_error(name: str) -> tuple[int, str]:
    """Status and error text of a recorded refusal, from its JSON or from the last line of its stream."""
    response = recorded(name)["response"]
    body = response.get("json") or response["ndjson"][-1]
    return response["status"], body["error"]


class Refused(Exception):
    """An error status with its text."""


@dataclass
class FakeOllama:
    """The server's state, and the faults a test wants: each is used at every request it fits."""

    folder: Path
    runner: Runner | None = None
    url: str = ""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    drop_upload_after: int | None = None
    """Close the connection after so many bytes of an upload."""
    damage_upload: bool = False
    """Change one byte of an upload on the way."""
    create_error: str | None = None
    """End the stream of a create with this error line, inside a 200."""
    create_silent_end: bool = False
    """End the stream of a create without ``success``."""
    change_shown: dict[str, Any] = field(default_factory=dict)
    """Fields of ``/api/show`` told otherwise than they are."""
    chat_error: tuple[int, str] | None = None
    break_stream: bool = False
    """End a streamed chat before its last line."""
    knows_debug_render: bool = True
    change_upload: Callable[[Path], None] | None = None
    """Change a file after its digest was found right, as a damaged disk would."""
    rewrites: bool = False
    """Write a GGUF anew at a create, with its settings in another order and so another digest: as servers from 0.30 on do."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Key of a create -> the error that such requests get."""
    drop_parameters: tuple[str, ...] = ()
    """Parameters that a create forgets."""
    tells_logprobs: bool = True
    tells_capabilities: bool = True
    thinks_by_itself: bool = True
    """A request that does not say whether to think means yes, for a model that can: so it is since 0.12."""
    answers_upload: tuple[int, str] | None = None
    """Refuse an upload before it was read, and close the connection: as a proxy that allows no files of this size."""
    page: tuple[int, str, str] | None = None
    """Answer everything with this status and HTML, and the header Location: as a proxy in between."""
    breaks_at: tuple[str, int] | None = None
    """Close the connection without an answer at the request to this path with this number, and at all later ones to it."""
    crashes: list[BaseException] = field(default_factory=list)
    """What went wrong in the server itself; a test that ends with some fails."""
    plain_text: bool = False
    """Answer everything with a 200 that is not JSON, as another program on the port would."""

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def uploads(self) -> int:
        return sum(method == "POST" and path.startswith("/api/blobs/") for method, path, _ in self.requests)

    # --- create and show ------------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Raises Refused for what is refused before the stream; yields the lines, an error as the last."""
        if not re.fullmatch(r"[\w./:-]+", body["model"]):
            raise Refused(*recorded_error("create-bad-name-error"))
        if "files" not in body:
            raise Refused(*recorded_error("create-neither-from-nor-files-error"))
        template = body.get("template") or AUTODETECTED
        try:
            render(template, [{"role": "user", "content": "x"}])
        except GoTemplateError as error:
            raise Refused(400, f"template error: template: :1: {error.message}") from error
        return self._create(body, template)

    def _create(self, body: dict[str, Any], template: str) -> Iterator[dict[str, Any]]:
        digest = next(iter(body["files"].values()))
        yield {"status": "parsing GGUF"}
        if not self.blob(digest).is_file():
            text = recorded_error("create-missing-blob-error")[1]
            yield {"error": re.sub(r"sha256-1+", digest.replace(":", "-"), text)}
            return
        if self.blob(digest).read_bytes()[:4] != b"GGUF":
            yield {"error": recorded_error("create-not-a-gguf-error")[1]}
            return
        if self.create_error is not None:
            yield {"error": self.create_error}
            return
        if self.rewrites:
            digest = self._written_anew(digest)
        yield {"status": f"using existing layer {digest}"}
        parameters = dict(body.get("parameters") or {})
        if not body.get("template"):
            yield {"status": "using autodetected template chatml"}
            parameters.setdefault("stop", ["<|im_start|>", "<|im_end|>"])
        yield {"status": "writing manifest"}
        if self.create_silent_end:
            return
        for name in self.drop_parameters:
            parameters.pop(name, None)
        self.models[_full(body["model"])] = {
            "digest": digest,
            "template": template,
            "system": body.get("system", ""),
            "parameters": parameters,
            "license": body.get("license", ""),
            "messages": body.get("messages", []),
        }
        yield {"status": "success"}

    def _written_anew(self, digest: str) -> str:
        old = self.blob(digest)
        new = old.with_name("new")
        in_another_order(old, new)
        digest = f"sha256:{hashlib.sha256(new.read_bytes()).hexdigest()}"
        new.replace(self.blob(digest))
        old.unlink()
        return digest

    def show(self, name: str) -> dict[str, Any]:
        model = self.model(name, "show-unknown-model-404")
        shown = dict(recorded("show-gguf")["response"]["json"])
        blob = model["digest"].replace(":", "-")
        shown["details"]["parent_model"] = blob
        shown["capabilities"] = capabilities(model["template"])
        if self.runner is not None:
            header = read_gguf(self.blob(model["digest"]))
            shown["model_info"] = header.metadata
            shown["tensors"] = [
                {"name": t.name, "type": t.type, "shape": list(t.shape)[::-1]} for t in header.tensors.values()
            ]
        shown |= {
            "modelfile": f'# Modelfile generated by "ollama show"\n\nFROM /models/blobs/{blob}\nTEMPLATE …\n',
            "template": model["template"],
            "parameters": "\n".join(_shown_parameters(model["parameters"])),
        }
        shown |= {key: model[key] for key in ("system", "license", "messages") if model[key]}
        if not self.tells_capabilities:
            del shown["capabilities"]
        return shown | self.change_shown

    def model(self, name: str, unknown: str) -> dict[str, Any]:
        """A model, whose blob must be there: the real server says of one whose blob is gone that it has no such model."""
        found = self.models.get(_full(name))
        if found is None or not self.blob(found["digest"]).is_file():
            status, text = recorded_error(unknown)
            raise Refused(status, text.replace("nope", name))
        return found

    # --- chat -----------------------------------------------------------------------------------------------------

    def prompt(self, model: dict[str, Any], messages: list[dict[str, Any]], body: dict[str, Any]) -> str:
        talk = [*model["messages"], *messages]
        if model["system"] and messages[0]["role"] != "system":
            talk = [{"role": "system", "content": model["system"]}, *talk]
        return render(model["template"], talk, body.get("tools") or [], body.get("think"))

    def chat(self, body: dict[str, Any]) -> tuple[str, Answered | None]:
        """The prompt and the answer, None when only the prompt was asked for. Raises Refused."""
        model = self.model(body["model"], "chat-unknown-model-404")
        if self.chat_error is not None:
            raise Refused(*self.chat_error)
        options = {**model["parameters"], **body.get("options", {})}
        if not isinstance(options.get("temperature", 0.8), (int, float)):
            raise Refused(*recorded_error("chat-with-bogus-parameters"))
        able = capabilities(model["template"])
        for wanted, what in ((body.get("tools"), "tools"), (body.get("think"), "thinking")):
            if wanted and what not in able:
                raise Refused(400, f"{json.dumps(body['model'])} does not support {what}")
        if self.thinks_by_itself and "thinking" in able and body.get("think") is None:
            body = body | {"think": True}
        if "messages" in body:
            prompt = self.prompt(model, body["messages"], body)
        else:
            assert body.get("raw"), "only raw prompts are generated from here"
            prompt = body["prompt"]
        if body.get("_debug_render_only") and self.knows_debug_render:
            return prompt, None
        if self.runner is None:
            lines = recorded("chat-stream")["response"]["ndjson"]
            return prompt, Answered([line["message"]["content"] for line in lines[:-1]], "stop", 37)
        top = int(body.get("top_logprobs") or 0) if body.get("logprobs") and self.tells_logprobs else 0
        return prompt, self.runner.answer(self.blob(model["digest"]), prompt, options, top)

    def steps(self, model: str, answered: Answered) -> list[dict[str, Any]]:
        """The probabilities of an answer in the API's form: text and bytes of each token, no ids."""
        gguf = self.blob(self.model(model, "chat-unknown-model-404")["digest"])

        def told(token: int, value: float) -> dict[str, Any]:
            assert self.runner is not None
            piece = self.runner.piece(gguf, token)
            return {"token": piece.decode("utf-8", "replace"), "logprob": value, "bytes": list(piece)}

        found = []
        for step in answered.steps:
            every = [told(token, value) for token, value in step]
            found.append({**every[0], "top_logprobs": every})
        return found


def _full(name: str) -> str:
    """As the server lists it: with its tag, without the registry and namespace that every name has; capitals mean nothing."""
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _with_error(name: str) -> tuple[int, dict[str, str]]:
    status, text = recorded_error(name)
    return status, {"error": text}


def _shown_parameters(parameters: dict[str, Any]) -> Iterator[str]:
    for name, value in parameters.items():
        for item in value if isinstance(value, list) else [value]:
            shown = f"{item:g}" if isinstance(item, float) else json.dumps(item, ensure_ascii=False)
            yield f"{name:<30} {shown}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeOllama

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.handle_one("HEAD")

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_DELETE(self) -> None:
        self.handle_one("DELETE")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def handle_one(self, method: str) -> None:
        try:
            self.answer(method)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            self.state.crashes.append(error)
            self.reply(500, {"error": f"the test server broke: {error!r}"})

    def answer(self, method: str) -> None:
        state = self.state
        before = sum(path == self.path for _, path, _ in state.requests)
        if state.breaks_at is not None and self.path == state.breaks_at[0] and before + 1 >= state.breaks_at[1]:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if self.path.startswith("/api/blobs/") and state.page is None:
            state.requests.append((method, self.path, None))
            self.head_blob() if method == "HEAD" else self.post_blob()
            return
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if state.page is not None:
            status, text, location = state.page
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(text.encode())))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            if method != "HEAD":
                self.wfile.write(text.encode())
            return
        body = json.loads(raw) if raw else {}
        if state.plain_text:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
            return
        state.requests.append((method, self.path, body))
        try:
            self.route(method, body)
        except Refused as refused:
            status, text = refused.args
            self.reply(status, {"error": text})

    def route(self, method: str, body: dict[str, Any]) -> None:
        state = self.state
        match method, self.path:
            case "GET", "/api/version":
                self.reply(200, recorded("version")["response"]["json"])
            case "GET", "/api/tags":
                entry = recorded("tags")["response"]["json"]["models"][0]
                self.reply(200, {"models": [entry | {"name": name, "model": name} for name in reversed(state.models)]})
            case "POST", "/api/create":
                for key, text in state.refuses.items():
                    if body.get(key):
                        raise Refused(400, text)
                self.stream(state.create(body))
            case "POST", "/api/show":
                self.reply(200, state.show(body["model"]))
            case "POST", "/api/copy":
                state.models[_full(body["destination"])] = state.model(body["source"], "show-unknown-model-404")
                self.reply(recorded("copy")["response"]["status"], None)
            case "DELETE", "/api/delete":
                state.model(body["model"], "show-unknown-model-404")
                del state.models[_full(body["model"])]
                self.reply(200, None)
            case "POST", "/api/chat" | "/api/generate":
                self.chat(body)
            case _:
                self.reply(404, None)

    def chat(self, body: dict[str, Any]) -> None:
        """``/api/chat`` and ``/api/generate``."""
        state, talks = self.state, "messages" in body
        if not talks and body.get("keep_alive") == 0:
            if state.runner is not None:
                state.runner.close()
            self.reply(200, recorded("unload")["response"]["json"] | {"model": body["model"]})
            return
        prompt, answered = state.chat(body)
        if answered is None:
            told = recorded("debug-render-smol-tpl-user")["response"]["json"]
            self.reply(200, told | {"model": body["model"], "_debug_info": {"rendered_template": prompt}})
            return
        figures = {
            "model": body["model"],
            "done_reason": answered.reason,
            "prompt_eval_count": answered.prompt_tokens,
            "eval_count": len(answered.pieces),
        }
        if answered.steps:
            figures["logprobs"] = state.steps(body["model"], answered)
        text = "".join(answered.pieces)
        if body.get("stream") is False:
            told = dict(recorded("chat-nonstream" if talks else "generate-raw")["response"]["json"])
            words = {"message": {"role": "assistant", "content": text}} if talks else {"response": text}
            self.reply(200, told | figures | words)
            return
        *_, last = recorded("chat-stream")["response"]["ndjson"]
        lines = [{"message": {"role": "assistant", "content": piece}, "done": False} for piece in answered.pieces]
        given = lines if state.break_stream else [*lines, last | figures]
        self.stream({**last, "done_reason": None, **line, "model": body["model"]} for line in given)

    # --- blobs ----------------------------------------------------------------------------------------------------

    def head_blob(self) -> None:
        digest = self.path.removeprefix("/api/blobs/")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            self.reply(400, None)
        elif self.state.blob(digest).is_file():
            self.reply(recorded("blob-head-present-200")["response"]["status"], None)
        else:
            self.reply(recorded("blob-head-missing-404")["response"]["status"], None)

    def post_blob(self) -> None:
        state, digest = self.state, self.path.removeprefix("/api/blobs/")
        if state.answers_upload is not None:
            self.reply(state.answers_upload[0], {"error": state.answers_upload[1]})
            self.close_connection = True
            self.connection.shutdown(2)
            return
        left = int(self.headers["Content-Length"])
        data = bytearray()
        while left and (piece := self.rfile.read(min(left, 65536))):
            data += piece
            left -= len(piece)
            if state.drop_upload_after is not None and len(data) >= state.drop_upload_after:
                self.close_connection = True
                self.connection.shutdown(2)
                return
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            self.reply(*_with_error("blob-post-malformed-digest-error"))
            return
        if state.blob(digest).is_file():
            self.reply(recorded("blob-post-again-200")["response"]["status"], None)
            return
        if state.damage_upload:
            data[-1] ^= 1
        got = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if got != digest:
            status, text = recorded_error("blob-post-digest-mismatch-error")
            words = re.sub(r'expected ".*?", got ".*?"', f'expected "{digest}", got "{got}"', text)
            self.reply(status, {"error": words})
            return
        state.blob(digest).write_bytes(data)
        if state.change_upload is not None:
            state.change_upload(state.blob(digest))
        self.reply(recorded("blob-post-201-created")["response"]["status"], None)

    # --- replies --------------------------------------------------------------------------------------------------

    def reply(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, lines: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            data = json.dumps(line).encode("utf-8") + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(folder: Path, runner: Runner | None = None, *, kind: type[FakeOllama] = FakeOllama) -> Iterator[FakeOllama]:
    """A running server that keeps its blobs in ``folder``; ``url`` says where it listens (a free port on loopback)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = kind(folder, runner)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
        if runner is not None:
            runner.close()
    if state.crashes:
        raise AssertionError("the test server broke") from state.crashes[0]
