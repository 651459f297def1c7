"""Deployment to Ollama against recorded exchanges: every step proved, every failure one clear message."""

from __future__ import annotations

import copy
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_models import Runner
from ollama_server import FakeOllama, recorded, serving
from tunesmith.chat import ollama_api
from tunesmith.chat.base import Engine, Sampling, answer
from tunesmith.chat.ollama_engine import OllamaEngine
from tunesmith.config.errors import ExportError, ServerError, UserError
from tunesmith.export.gguf_file import GgufHeader, GgufTensor
from tunesmith.export.go_template import PROBES, render_as_ollama
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama import OllamaServer, manual_command, sha256
from tunesmith.export.ollama_deploy import QUESTION, deploy, give_name, trial_name, unproved
from tunesmith.export.ollama_reply import read_reply
from tunesmith.export.ollama_shown import REWRITTEN, differences, go_unquote, notes, shown_parameters

TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
FULL = Modelfile(
    "./model.gguf",
    template=TEMPLATE,
    system='You are "brief".\n你好\u3000',
    parameters={"stop": ["<|im_end|>", '"\n\\'], "temperature": 0.2, "num_ctx": 2048, "seed": 7},
    license="Apache-2.0\n…",
    messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Arr!"}],
)


class Told:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float | None, str]] = []
        self.amount: dict[str, float] = {}
        self.lines: list[str] = []

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        self.tasks.append((task, total, unit))

    def advance(self, amount: float = 1) -> None:
        name = self.tasks[-1][0]
        self.amount[name] = self.amount.get(name, 0) + amount

    def finish(self, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeOllama]:
    with serving(tmp_path / "blobs") as state:
        yield state


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf")


def write_gguf(path: Path, *, layers: int = 2, leave_out: str = "") -> Path:
    """A small GGUF of random numbers that says it has ``layers`` layers, without the tensors whose name begins with ``leave_out``."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    for name in ("token_embd", "output_norm", *(f"blk.{i}.ffn_up" for i in range(layers))):
        if not leave_out or not name.startswith(leave_out):
            writer.add_tensor(f"{name}.weight", np.random.default_rng(0).random((1024, 512), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- the way that works ------------------------------------------------------------------------------------------


def test_deploy_proves_every_field(fake: FakeOllama, gguf: Path) -> None:
    told = Told()
    with OllamaServer(fake.url) as server:
        report = deploy(server, gguf, "my-model", FULL, told)
    size = gguf.stat().st_size
    assert report.digest == sha256(gguf)
    assert (report.size_bytes, report.uploaded_bytes, report.replaced) == (size, size, False)
    assert report.version == "0.24.0"
    assert set(report.checks) == {
        *("weights", "template", "system", "license", "messages", "completion"),
        *("stop", "temperature", "num_ctx", "seed"),
    }
    assert report.answer == "The capital of France is Paris."
    assert report.question == QUESTION
    assert report.capabilities == ("completion",)
    assert report.notes == ()
    assert told.amount == {"digest of model.gguf": size, f"send to {fake.url}": size}
    assert "success" in told.lines


def test_create_sends_what_the_real_server_was_sent(fake: FakeOllama, gguf: Path) -> None:
    with OllamaServer(fake.url) as server:
        deploy(server, gguf, "my-model", FULL)
    sent = next(body for method, path, body in fake.requests if path == "/api/create")
    real = recorded("create-gguf-template-system-parameters-license-messages")["request"]["body"]
    assert set(sent) == set(real)
    for key in ("template", "system"):
        assert isinstance(sent[key], type(real[key]))
    assert {type(v) for v in sent["parameters"].values()} <= {type(v) for v in real["parameters"].values()}
    assert sent["messages"][0].keys() == real["messages"][0].keys()
    assert next(iter(sent["files"].values())).startswith("sha256:")


def test_nothing_is_uploaded_twice(fake: FakeOllama, gguf: Path) -> None:
    with OllamaServer(fake.url) as server:
        deploy(server, gguf, "one", FULL)
        second = deploy(server, gguf, "two", FULL)
        again = deploy(server, gguf, "two:latest", FULL)
        assert server.names() == ("two:latest", "one:latest")
        assert server.remove("one")
        assert not server.remove("one")
        assert server.names() == ("two:latest",)
    assert fake.uploads() == 1
    assert (second.uploaded_bytes, second.replaced, again.replaced) == (0, False, True)


def test_a_working_model_is_replaced_only_by_a_proved_one(fake: FakeOllama, gguf: Path) -> None:
    """The new model stands under a name of its own until the proof is over; whatever fails, the old one is as it was."""
    with OllamaServer(fake.url) as server:
        deploy(server, gguf, "me/m:v1", Modelfile("x", template=TEMPLATE, system="old"))
        seen: list[str] = []

        def prove(trial: str, shown: Any, wrong: dict[str, str]) -> None:
            seen.append(trial)
            assert fake.models[trial]["system"] == shown["system"] == "new" and wrong == {}
            assert fake.models["me/m:v1"]["system"] == "old"
            raise ExportError("not the same model")

        new = Modelfile("x", template=TEMPLATE, system="new")
        with pytest.raises(ExportError, match="not the same"):
            deploy(server, gguf, "me/m:v1", new, prove=prove)
        assert [name[:-8] for name in seen] == ["me/m:v1-unproved-"]
        assert list(fake.models) == ["me/m:v1"] and fake.models["me/m:v1"]["system"] == "old"
        deploy(server, gguf, "me/m:v1", new, prove=lambda *_: None)
        assert list(fake.models) == ["me/m:v1"] and fake.models["me/m:v1"]["system"] == "new"
        fake.change_shown = {"parameters": "seed 8"}
        wrong: dict[str, str] = {}
        deploy(server, gguf, "me/m:v1", FULL, prove=lambda _trial, _shown, found: wrong.update(found))
        assert set(wrong) == set(FULL.parameters), "a proof is told what differs, and decides"
        fake.change_shown = {"modelfile": f"FROM sha256-{'0' * 64}\n"}
        with pytest.raises(ExportError, match="its weights are"):
            deploy(server, gguf, "me/m:v1", new, prove=lambda *_: None)


def test_create_from_a_model_with_adapters_and_quantize(fake: FakeOllama) -> None:
    """The fields as a real server was sent them; a digest that is none is refused here."""
    real = recorded("create-adapter-gguf-all")["request"]["body"]
    ((name, digest),) = real["adapters"].items()
    with OllamaServer(fake.url) as server:
        with pytest.raises(ServerError):  # this server has no such base
            server.create(
                real["model"], from_=real["from"], adapters={name: digest.removeprefix("sha256:")}, quantize="q8_0"
            )
        assert fake.requests[-1][2] == real | {"quantize": "q8_0"}
        with pytest.raises(ExportError, match="no SHA-256"):
            server.create("m", files={"model.gguf": digest})


def test_without_a_template_the_report_says_what_the_server_chose(fake: FakeOllama, gguf: Path) -> None:
    with OllamaServer(fake.url) as server:
        report = deploy(server, gguf, "my-model", Modelfile("./model.gguf"))
        assert any("chose the chat template itself" in note for note in report.notes)
        assert any("parameters of its own: stop" in note for note in report.notes)
        fake.change_shown = {"template": "{{ .Prompt }}"}
        report = deploy(server, gguf, "my-model", Modelfile("./model.gguf"))
        assert any("without a chat format" in note for note in report.notes)


def test_the_rendered_prompt_can_be_asked_for(fake: FakeOllama, gguf: Path) -> None:
    with OllamaServer(fake.url) as server:
        deploy(server, gguf, "my-model", Modelfile("x", template=TEMPLATE, system="S"))
        prompt = server.rendered_prompt("my-model", [{"role": "user", "content": "Hi"}])
        assert prompt == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        fake.knows_debug_render = False
        assert server.rendered_prompt("my-model", [{"role": "user", "content": "Hi"}]) is None


def test_alive_and_version_are_quick_and_never_raise_for_nothing(fake: FakeOllama) -> None:
    with OllamaServer(fake.url) as server:
        assert server.version() == "0.24.0"
        assert server.alive()
    with OllamaServer(f"http://127.0.0.1:{free_port()}") as nothing:
        assert not nothing.alive()
    with OllamaServer(fake.url + "/elsewhere") as other:
        assert not other.alive()
    fake.plain_text = True
    with OllamaServer(fake.url) as other:
        assert not other.alive()
        for ask in (
            other.version,
            other.names,
            lambda: other.show("m"),
            lambda: list(other._lines("/api/show", "x", {})),
        ):
            with pytest.raises(ServerError, match="is not Ollama"):
                ask()
    with pytest.raises(ServerError, match="is not Ollama"):
        answer(OllamaEngine("m", fake.url), [{"role": "user", "content": "Hi"}], Sampling())


# --- the ways that fail: one message and one hint each -------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "words", "hint"),
    [
        ({"damage_upload": True}, ServerError, "digest mismatch, expected", "deploy again"),
        ({"drop_upload_after": 2**20}, ollama_api.ServerGoneError, "broke while sending model.gguf", "still runs"),
        (
            {"create_error": "no space left on device"},
            ServerError,
            "no space left on device",
            "free disk space",
        ),
        ({"create_error": "unsupported architecture"}, ServerError, "unsupported architecture", "--to gguf"),
        ({"create_silent_end": True}, ServerError, "stopped at 'writing manifest'", "log"),
        ({"change_shown": {"template": "x"}}, ExportError, "its template is 'x'", "removed again"),
        ({"change_shown": {"system": ""}}, ExportError, "its system is ''", "removed again"),
        ({"change_shown": {"parameters": "seed 8"}}, ExportError, "its seed is 8, not 7", "removed again"),
        ({"change_shown": {"capabilities": ["embedding"]}}, ExportError, "cannot answer", "removed again"),
        ({"change_shown": {"modelfile": f"FROM sha256-{'0' * 64}\n"}}, ExportError, "its weights are", "removed again"),
        ({"change_shown": {"messages": []}}, ExportError, "example messages differ", "removed again"),
        ({"change_shown": {"license": "MIT"}}, ExportError, "license text differs", "removed again"),
        (
            {"chat_error": (500, 'option "x" must be of type float32')},
            ServerError,
            "(500) while asking m",
            "wrong type",
        ),
        ({"chat_error": (500, "model requires more system memory")}, ServerError, "system memory", "smaller quant"),
        ({"answers_upload": (413, "too large")}, ServerError, "(413) while sending model.gguf: too large", "limit"),
        ({"create_error": "path or Modelfile are required"}, ServerError, "Modelfile are required", "too old"),
    ],
)
def test_faults(
    fake: FakeOllama, gguf: Path, fault: dict[str, Any], kind: type[UserError], words: str, hint: str
) -> None:
    for name, value in fault.items():
        setattr(fake, name, value)
    with OllamaServer(fake.url) as server, pytest.raises(kind) as caught:
        deploy(server, gguf, "m", FULL)
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")
    assert fake.models == {}, "a model that does not answer gets no name, and none on trial is left"


def test_what_stands_between_here_and_ollama_is_not_taken_for_it(fake: FakeOllama, gguf: Path) -> None:
    """A proxy's pages and an address that leads elsewhere: in few words, with what to do; nothing follows to another server."""
    page = (
        "<!DOCTYPE html>\n<html><head><title>502 Bad\n Gateway &amp; more</title></head><body>"
        + "x" * 5000
        + "</body></html>"
    )
    with OllamaServer(fake.url) as server:
        fake.page = 502, page, ""
        with pytest.raises(
            ServerError, match=r"a web page came .* \(502\) while .*: 502 Bad Gateway & more\n"
        ) as caught:
            server.show("m")
        assert "proxy" in (caught.value.hint or "")
        fake.page = 200, page, ""
        with pytest.raises(ServerError, match="is not Ollama"):
            server.version()
        fake.page = 301, "", "https://elsewhere.example/api/version"
        for ask in (server.version, lambda: server.upload(gguf), lambda: server.create("m", from_="n")):
            with pytest.raises(ServerError, match=r"sends to https://elsewhere\.example/.* \(301\)") as caught:
                ask()
            assert "--url" in (caught.value.hint or "")
        assert not server.alive()
    with (
        OllamaServer(fake.url.replace("http:", "https:")) as server,
        pytest.raises(ServerError, match="not speak https") as caught,
    ):
        server.version()
    assert f"--url {fake.url}" in (caught.value.hint or "")
    untrusted = ConnectionError(
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1)"
    )
    told = ollama_api.unreachable("https://a:443", untrusted, "x")
    assert "self-signed" in told.message and "SSL_CERT_FILE" in (told.hint or "")


def test_a_model_whose_file_vanished_is_none(fake: FakeOllama, gguf: Path) -> None:
    """Its blob was deleted behind the server's back: the server says that there is no such model, and the next deployment sends it again."""
    with OllamaServer(fake.url) as server:
        first = deploy(server, gguf, "m", FULL)
        fake.blob(f"sha256:{first.digest}").unlink()
        assert server.show("m") is None
        again = deploy(server, gguf, "m", FULL)
    assert (again.replaced, again.uploaded_bytes) == (False, first.size_bytes)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("m", "m:latest", True),
        ("library/M", "m", True),
        ("registry.ollama.ai/library/m:latest", "m", True),
        ("me/m", "m", False),
        ("m:a", "m:b", False),
        ("hf.co/me/m:Q4", "me/m:q4", False),
        ("localhost:5000/me/m", "me/m", False),
    ],
)
def test_names_of_one_model(fake: FakeOllama, one: str, other: str, same: bool) -> None:
    assert ollama_api.same_model(one, other) == ollama_api.same_model(other, one) == same
    for name in (one, other):
        assert ollama_api.check_name(name) == name


def test_an_upload_that_another_finished_meanwhile_is_taken(fake: FakeOllama, gguf: Path) -> None:
    """Two deployments of one file: the server answers the second upload with 200, as recorded, not 201."""
    with OllamaServer(fake.url) as server:
        digest, _ = server.upload(gguf)
        response = server._send("POST", f"/api/blobs/sha256:{digest}", "sending", content=gguf.read_bytes())
        assert response.status_code == recorded("blob-post-again-200")["response"]["status"]


def test_a_model_on_trial_that_cannot_be_removed_is_named(fake: FakeOllama) -> None:
    told = Told()
    with OllamaServer(fake.url) as server, pytest.raises(ExportError, match="the first error"):
        with unproved(server, "me/m:x", told) as trial:
            server.url, server._client = "http://127.0.0.1:9", ollama_api.http_client("http://127.0.0.1:9")
            raise ExportError("the first error")
    assert trial.startswith("me/m:x-unproved-") and f"`ollama rm {trial}`" in told.lines[0]


def test_two_deployments_of_one_name_have_a_trial_each(fake: FakeOllama, gguf: Path, tmp_path: Path) -> None:
    """One that begins while another proves never gets that one's name or proof, and removes only its own; one left behind is named."""
    told, seen = Told(), []
    with OllamaServer(fake.url) as server:

        def prove(trial: str, *_: Any) -> None:
            seen.append(trial)
            if len(seen) == 1:
                other = write_gguf(tmp_path / "other.gguf", layers=3)
                deploy(server, other, "m:7b", FULL, told, prove=prove)
                assert set(fake.models) == {trial, "m:7b"}, "the other's trial is gone, this one stands"

        first = deploy(server, gguf, "m:7b", FULL, prove=prove)
        assert len(set(seen)) == 2 and list(fake.models) == ["m:7b"]
        assert fake.models["m:7b"]["digest"] == f"sha256:{first.digest}"
        warned = [line for line in told.lines if line.startswith("warning")]
        assert len(warned) == 1 and f"`ollama rm {seen[0]}`" in warned[0]
        for name in ("m", f"me/{'a' * 80}:{'b' * 80}"):
            assert ollama_api.check_name(trial_name(name)) != trial_name(name)


def test_a_trial_that_was_changed_gets_no_name(fake: FakeOllama, gguf: Path, tmp_path: Path) -> None:
    """Whatever else writes on the server while a model is proved."""
    with OllamaServer(fake.url) as server:
        digest, _ = server.upload(write_gguf(tmp_path / "other.gguf", layers=3))
        other = replace(FULL, parameters={**FULL.parameters, "seed": 8})
        for change, words in (
            (lambda trial: server.create(trial, files={"x.gguf": digest}, modelfile=FULL), "it was changed"),
            (
                lambda trial: server.create(trial, files={"x.gguf": sha256(gguf)}, modelfile=Modelfile("x")),
                "it was changed",
            ),
            (lambda trial: server.create(trial, files={"x.gguf": sha256(gguf)}, modelfile=other), "it was changed"),
        ):
            with pytest.raises(ExportError, match=words):
                deploy(server, gguf, "m", FULL, prove=lambda trial, *_, change=change: change(trial))
            assert fake.models == {}
        with pytest.raises(ExportError, match="it is gone"):
            give_name(server, "m:x", "m", {})


@pytest.mark.parametrize(
    ("url", "sent"), [("http://127.0.0.1:1", True), ("https://10.0.0.5:1", True), ("http://10.0.0.5:1", False)]
)
def test_the_key_is_never_readable_on_the_way(monkeypatch: pytest.MonkeyPatch, url: str, sent: bool) -> None:
    """Neither by our requests nor by the official client, which would add it by itself."""
    import httpx

    seen: list[httpx.Request] = []

    def keep(_: object, request: httpx.Request) -> httpx.Response:
        seen.append(request)
        raise httpx.ConnectError("not in a test")

    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", keep)
    with OllamaServer(url) as server, pytest.raises(ServerError):
        server.version()
    with pytest.raises(ServerError):
        answer(OllamaEngine("m", url), [{"role": "user", "content": "x"}], Sampling())
    assert [request.headers.get("Authorization") for request in seen] == [("Bearer secret" if sent else None)] * 2
    assert ("is not sent there" in (ollama_api.remote_warning(url) or "")) == (not sent)


def test_no_server(gguf: Path) -> None:
    with (
        OllamaServer(f"127.0.0.1:{free_port()}") as server,
        pytest.raises(ServerError, match="no Ollama server answers") as caught,
    ):
        deploy(server, gguf, "m", FULL)
    assert "ollama serve" in (caught.value.hint or "")


def test_a_template_that_the_server_cannot_read(fake: FakeOllama, gguf: Path) -> None:
    with (
        OllamaServer(fake.url) as server,
        pytest.raises(ServerError, match=r"\(400\) while creating m:latest-unproved-\w+: template error"),
    ):
        deploy(server, gguf, "m", Modelfile("x", template="{{ nofunc .X }}"))


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "model.gguf", "there is no file"),
        (b"PK\x03\x04", "model.gguf", "is not a GGUF"),
        (b"", "model.gguf", "is not a GGUF"),
        (b"GGUF", "model-00001-of-00002.gguf", "one part of a split GGUF"),
    ],
)
def test_wrong_files_are_refused_before_anything_is_sent(
    fake: FakeOllama, tmp_path: Path, content: bytes | None, name: str, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with OllamaServer(fake.url) as server, pytest.raises(ExportError, match=words):
        deploy(server, path, "m", FULL)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("leave_out", "words"),
    [("blk.1", "lacks the layers 1"), ("token_embd", "lacks token_embd"), ("cut", "its tensors need")],
)
def test_a_file_that_is_no_whole_model_is_refused(fake: FakeOllama, tmp_path: Path, leave_out: str, words: str) -> None:
    """A real server takes a file of one tensor, and answers nonsense."""
    path = write_gguf(tmp_path / "m.gguf", layers=3, leave_out=leave_out)
    if leave_out == "cut":
        path.write_bytes(path.read_bytes()[:-64])
    with OllamaServer(fake.url) as server, pytest.raises(ExportError, match=words):
        deploy(server, path, "m", FULL)
    assert fake.requests == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "bad name!",
        "-x",
        ".x",
        "a/b/c/d",
        "../m",
        "a//b",
        "m:",
        "m:a b",
        ":latest",
        "name.space/m",
        "x" * 81,
        "ü",
        "m\n",
    ],
)
def test_wrong_names_are_refused_before_anything_is_sent(fake: FakeOllama, gguf: Path, name: str) -> None:
    with OllamaServer(fake.url) as server, pytest.raises(UserError, match="no name for an Ollama model"):
        deploy(server, gguf, name, FULL)
    assert fake.requests == []


@pytest.mark.parametrize(
    "name", ["m", "My_Model-2.5", "m:v1.0", "me/m:latest", "host.example:5000/me/m:x", "_x", "x" * 80]
)
def test_right_names(name: str) -> None:
    assert ollama_api.check_name(name) == name


# --- the address --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://0.0.0.0:8080/", "http://127.0.0.1:8080"),
        ("[::]:1", "http://[::1]:1"),
        ("::1", "http://[::1]:11434"),
        ("[0001:002:003:0004::1]:56789", "http://[0001:002:003:0004::1]:56789"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:56789/path/", "https://example.com:56789/path"),
        ("example.com/path", "http://example.com:11434/path"),
        (" 'example.com:1' ", "http://example.com:1"),
        ("localhost:0", "http://localhost:0"),
    ],
)
def test_address_is_read_as_ollama_reads_it(monkeypatch: pytest.MonkeyPatch, value: str, url: str) -> None:
    assert ollama_api.address(value) == url
    monkeypatch.setenv("OLLAMA_HOST", value)
    assert ollama_api.address() == url
    assert OllamaServer().url == url


@pytest.mark.parametrize("value", ["ftp://x", "x:99999", "x:port", "a b", "http://[::1", "http://x;y"])
def test_wrong_addresses(value: str) -> None:
    with pytest.raises(UserError, match="no address of an Ollama server"):
        ollama_api.address(value)


def test_another_machine_is_named_as_such() -> None:
    for url in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9:1"):
        assert ollama_api.remote_warning(url) is None
    assert "unencrypted" in (ollama_api.remote_warning("http://10.0.0.5:11434") or "")
    assert "unencrypted" not in (ollama_api.remote_warning("https://example.com:443") or "unencrypted")
    assert "another machine" in (ollama_api.remote_warning("http://localhost.example.com:1") or "")


def test_no_proxy_for_loopback(monkeypatch: pytest.MonkeyPatch, fake: FakeOllama) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with OllamaServer(fake.url) as server:
        assert server.alive()


def test_manual_command() -> None:
    command = manual_command(Path("/out/my model; rm/Modelfile"), "me/m:v1")
    if os.name != "nt":
        assert shlex.split(command) == ["ollama", "create", "me/m:v1", "-f", "/out/my model; rm/Modelfile"]
    with pytest.raises(UserError):
        manual_command(Path("/out"), "m; rm -rf")


# --- reading /api/show ---------------------------------------------------------------------------------------------


def test_the_recorded_show_of_a_real_server() -> None:
    shown = recorded("show-gguf")["response"]["json"]
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    intended = Modelfile("x", template=shown["template"], parameters={"stop": ["<|im_start|>", "<|im_end|>"]})
    assert differences(shown, intended, digest) == ({}, ("weights", "template", "stop", "completion"))
    wrong, _ = differences(shown, intended, "0" * 64)
    assert list(wrong) == ["weights"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: None, None),
        (lambda told: told["tensors"].reverse(), None),
        (lambda told: told["model_info"].pop("tokenizer.ggml.pre"), None),
        (lambda told: told.pop("tensors"), "does not tell which tensors"),
        (lambda told: told["tensors"].pop(), "is not in it"),
        (lambda told: told["tensors"].append({"name": "extra.weight", "type": "F32", "shape": [1]}), "was not sent"),
        (lambda told: told["tensors"][0].update(shape=[576, 49153]), "token_embd.weight has another shape"),
        (lambda told: told["tensors"][0].update(type="Q4_K"), "token_embd.weight is Q4_K, Q8_0 was sent"),
        (lambda told: told["tensors"][0].update(type="unknown"), None),
        (lambda told: told["model_info"].update({"tokenizer.ggml.pre": "gpt-2"}), "tokenizer.ggml.pre is 'gpt-2'"),
        (lambda told: told["model_info"].update({"llama.rope.freq_base": 10000}), "llama.rope.freq_base is 10000"),
        (lambda told: told["model_info"].update({"tokenizer.ggml.add_bos_token": True}), "add_bos_token is"),
        (lambda told: told["model_info"].update({"general.file_type": 7}), None),
    ],
)
def test_a_file_that_the_server_wrote_anew(change: Callable[[dict[str, Any]], Any], words: str | None) -> None:
    """Its digest is another; it is the model that was sent if its tensors and settings are."""
    shown = copy.deepcopy(recorded("show-gguf")["response"]["json"])
    shown["tensors"] = [
        {"name": "token_embd.weight", "type": "Q8_0", "shape": [576, 49152]},
        {"name": "output_norm.weight", "type": "F32", "shape": [576]},
    ]
    shown["model_info"] = {
        "general.file_type": 3, "llama.rope.freq_base": 100000, "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": None,
    }  # fmt: skip
    tensors = {
        one["name"]: GgufTensor(one["name"], one["type"], tuple(one["shape"][::-1]), 0) for one in shown["tensors"]
    }
    metadata = {key: value for key, value in shown["model_info"].items() if isinstance(value, (bool, int, float, str))}
    sent = GgufHeader(metadata | {"llama.rope.freq_base": float(metadata["llama.rope.freq_base"])}, tensors)
    change(shown)
    wrong, proved = differences(shown, Modelfile("x"), "0" * 64, sent)
    if words is None:
        assert not wrong and REWRITTEN in proved
    else:
        assert list(wrong) == ["weights"] and words in wrong["weights"] and REWRITTEN not in proved


def test_a_template_that_the_server_does_not_use() -> None:
    shown = dict(recorded("show-gguf")["response"]["json"])
    asked = Modelfile("x", template=shown["template"])
    assert notes(shown | {"template_source": "go_template"}, asked, "Hi") == notes(shown, asked, "Hi")
    told = notes(shown | {"template_source": "gguf_chat_template"}, asked, "Hi")
    assert any("its own gguf_chat_template, not with the TEMPLATE" in line for line in told)


def test_parameters_as_go_prints_them() -> None:
    text = (
        'stop    "a\\"b"\nstop  "\\n\\t\\x00\\u00a0\\U0001f642\\\\"\ntemperature  1e-05\nnum_ctx 2.097152e+06\nbogus 1'
    )
    assert shown_parameters(text) == {
        "stop": ['a"b', "\n\t\x00\u00a0🙂\\"],
        "temperature": 1e-05,
        "num_ctx": 2097152,
    }
    assert go_unquote("bare") == "bare"


def test_probabilities_as_a_real_server_told_them() -> None:
    told = recorded("chat-logprobs")["response"]["json"]
    reply = read_reply(told, told["message"]["content"])
    assert (reply.text, reply.done_reason, reply.tokens) == ("The capital of France", "length", 4)
    assert [len(step) for step in reply.top] == [3, 3, 3, 3]
    assert reply.top[0][0] == (b"The", pytest.approx(-0.6411, abs=1e-4))
    half = {"logprobs": [{"top_logprobs": [{"token": "\ufffd", "bytes": [228, 189], "logprob": -1.0}]}]}
    assert read_reply(half, "").top == (((b"\xe4\xbd", -1.0),),), "half a character is told by its bytes"
    assert read_reply({}, "").prompt_tokens == 0


# --- the engine ----------------------------------------------------------------------------------------------------


def test_engine_streams(fake: FakeOllama, gguf: Path) -> None:
    with OllamaServer(fake.url) as server:
        deploy(server, gguf, "m", FULL)
    engine: Engine = OllamaEngine("m", fake.url)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    sampling = Sampling(max_tokens=16, temperature=0.5, top_p=0.9, seed=3)
    assert list(engine.stream(messages, sampling)) == ["The", " capital", " of", " France", " is", " Paris", "."]
    assert engine.name == "ollama:m"
    sent = fake.requests[-1][2]
    assert sent["messages"] == messages
    options = sent["options"]
    assert (options["num_predict"], options["temperature"], options["top_p"], options["seed"]) == (16, 0.5, 0.9, 3)
    assert (options["top_k"], options["repeat_penalty"], options["min_p"]) == (0, 1.0, 0.0)
    engine.close()
    engine.close()


def test_engine_failures(fake: FakeOllama, gguf: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    engine = OllamaEngine("nope", fake.url)
    with pytest.raises(ServerError, match="model 'nope' not found") as caught:
        answer(engine, messages, Sampling())
    assert "ollama list" in (caught.value.hint or "")
    with OllamaServer(fake.url) as server:
        deploy(server, gguf, "m", FULL)
    fake.break_stream = True
    with pytest.raises(ServerError, match="broke off"):
        answer(OllamaEngine("m", fake.url), messages, Sampling())
    with pytest.raises(ServerError, match="no Ollama server answers"):
        answer(OllamaEngine("m", f"127.0.0.1:{free_port()}"), messages, Sampling())
    with pytest.raises(UserError, match="cannot tell the probabilities"):
        engine.logprobs([1])
    with pytest.raises(UserError, match="no name"):
        OllamaEngine("bad name!")


@pytest.mark.real
def test_the_uploaded_gguf_itself_answers(tmp_path: Path) -> None:
    """With $TUNESMITH_GGUF (SmolLM2-135M-Instruct): llama.cpp on what arrived says what a real Ollama was recorded saying."""
    if "TUNESMITH_GGUF" not in os.environ:
        pytest.skip("$TUNESMITH_GGUF names no GGUF of SmolLM2-135M-Instruct")
    with serving(tmp_path / "blobs", Runner()) as fake, OllamaServer(fake.url) as server:
        parameters = {"stop": ["<|im_end|>"]}
        deploy(
            server, Path(os.environ["TUNESMITH_GGUF"]), "m", Modelfile("x", template=TEMPLATE, parameters=parameters)
        )
        said = answer(OllamaEngine("m", fake.url), recorded("chat-stream")["request"]["body"]["messages"], Sampling())
    lines = recorded("chat-stream")["response"]["ndjson"]
    assert said == "".join(line["message"]["content"] for line in lines)


# --- a real server, when there is one ------------------------------------------------------------------------------


def test_a_real_server() -> None:
    """Answers of a real Ollama; with $TUNESMITH_GGUF (a ChatML model) also a deployment, and prompts compared."""
    with OllamaServer() as server:
        if not server.alive():
            pytest.skip(f"no Ollama server answers at {server.url} (set OLLAMA_HOST to test against one)")
        assert server.version()[0].isdigit()
        assert server.show("tunesmith-no-such-model") is None
        with pytest.raises(ServerError, match="not found"):
            answer(OllamaEngine("tunesmith-no-such-model"), [{"role": "user", "content": "Hi"}], Sampling())
        if "TUNESMITH_GGUF" not in os.environ:
            return
        intended = Modelfile("x", template=TEMPLATE, system="Be brief.", parameters={"stop": ["<|im_end|>"]})
        try:
            report = deploy(server, Path(os.environ["TUNESMITH_GGUF"]), "tunesmith-test", intended)
            assert {"weights", "template", "system", "stop", "completion"} <= set(report.checks)
            for probe in PROBES:
                prompt = server.rendered_prompt("tunesmith-test", probe.messages)
                system = () if probe.messages[0]["role"] == "system" else ({"role": "system", "content": "Be brief."},)
                assert prompt in (None, render_as_ollama(TEMPLATE, [*system, *probe.messages])), probe.name
        finally:
            server.remove("tunesmith-test")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
