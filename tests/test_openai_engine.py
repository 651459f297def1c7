"""URL#MODEL: a real llama.cpp server in this process, and a server that does what servers do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import make_model
from ollama_server import recorded
from tunesmith.chat.base import NoDistributionError, Sampling, answer
from tunesmith.chat.llamacpp import LlamaCppEngine
from tunesmith.chat.openai_engine import OpenAIEngine
from tunesmith.config.errors import ServerError
from tunesmith.config.progress import SILENT
from tunesmith.export.targets import gguf
from tunesmith.verbs.targets import open_engine

ASK = [{"role": "user", "content": "Hello 你好"}]
Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[tuple[str, dict[str, str], Any]]]]:
    """A server on loopback that answers POST with ``reply``; its address and what it was sent."""
    seen: list[tuple[str, dict[str, str], Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            reply(self, body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def events(*lines: Any, cut: bool = False) -> Reply:
    """A stream of server-sent events; ``cut``: the connection ends inside it."""

    def reply(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            data = f"data: {text}\n\n".encode()
            handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if cut:
            handler.close_connection = True
            handler.connection.shutdown(2)
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return reply


def whole(status: int, body: Any) -> Reply:
    def reply(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def delta(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}]}


def test_a_streamed_answer() -> None:
    reply = events(delta(""), delta("你"), delta("好🙂"), {"choices": [], "usage": {}}, delta(None, "stop"), "[DONE]")
    with serving(reply) as (url, seen):
        engine = open_engine(f"{url}#org/model:7b", SILENT)
        assert list(engine.stream(ASK, Sampling(max_tokens=9, seed=3))) == ["你", "好🙂"]
        engine.close()
    path, headers, body = seen[0]
    assert path == "/v1/chat/completions" and "authorization" not in headers
    assert body["model"] == "org/model:7b" and body["messages"] == ASK and body["stream"] is True
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (9, 0.0, 3)


def test_a_server_that_does_not_stream() -> None:
    """As Ollama's /v1 was recorded to answer."""
    with serving(whole(200, recorded("openai-chat-completions")["response"]["json"])) as (url, _):
        assert answer(OpenAIEngine(f"{url}/v1/", "t-gguf"), ASK, Sampling()) == "The capital of France is Paris."


def test_no_words_are_an_answer_too() -> None:
    with serving(events(delta(None, "stop"), "[DONE]")) as (url, _):
        assert answer(OpenAIEngine(url, "m"), ASK, Sampling()) == ""


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (events(delta("half"), cut=True), "broke"),
        (events(delta("half")), "broke off before its end"),
        (events(delta("half"), {"error": {"message": "out of memory"}}), "out of memory"),
        (whole(404, {"error": {"message": "The model `m` does not exist."}}), r"\(404\).*does not exist"),
        (whole(401, {"error": "no key"}), r"\(401\).*no key"),
        (whole(200, "<html>"), "no OpenAI-style server"),
        (whole(302, ""), r"\(302\)"),
    ],
)
def test_what_goes_wrong_is_one_message(reply: Reply, words: str) -> None:
    with serving(reply) as (url, _), pytest.raises(ServerError, match=words) as caught:
        answer(OpenAIEngine(url, "m"), ASK, Sampling())
    assert "hint:" in str(caught.value)


def test_no_server() -> None:
    with pytest.raises(ServerError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        answer(OpenAIEngine("http://127.0.0.1:9", "m"), ASK, Sampling())
    with pytest.raises(NoDistributionError):
        OpenAIEngine("http://127.0.0.1:9", "m").logprobs([1])


def test_the_key_goes_to_this_machine_or_encrypted_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(whole(401, {"error": "bad key"})) as (url, seen):
        with pytest.raises(ServerError, match="bad key") as caught:
            answer(OpenAIEngine(url, "m"), ASK, Sampling())
        assert seen[0][1]["authorization"] == "Bearer sk-secret" and "sk-secret" not in str(caught.value)
    far = OpenAIEngine("http://models.example.com/v1", "m")
    assert "authorization" not in far._client.headers and far.warning is not None
    assert "$OPENAI_API_KEY is not sent there" in far.warning
    secure = OpenAIEngine("https://models.example.com/v1", "m")
    assert secure.warning is None and secure._client.headers["authorization"] == "Bearer sk-secret"


@pytest.mark.slow
def test_llama_cpps_own_server_gives_the_same_answer(few: Path, tmp_path: Path) -> None:
    import xllamacpp

    base = make_model(few, tmp_path / "base", "llama")
    file = gguf.export(base, tmp_path / "base.gguf", gguf.Config(level="f32")).out
    with LlamaCppEngine(file, threads=1, n_ctx=256) as here:
        expected = answer(here, ASK, Sampling(max_tokens=8))
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup = str(file), 256, 1, False
    parameters.port = 0
    server = xllamacpp.Server(parameters)
    engine = open_engine(f"{server.listening_address}#any", SILENT)
    assert answer(engine, ASK, Sampling(max_tokens=8)).strip() == expected.strip() != ""
    engine.close()
    del server  # it says its last words now, not into another test
