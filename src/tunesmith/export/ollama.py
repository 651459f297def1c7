"""A running Ollama server: what can be asked of it, and how models are put there. One method per request.

Protocol: https://docs.ollama.com/api and recorded exchanges with a real server (tests/recorded/ollama). Requests are written
here with httpx, and only the chat engine uses the official client: that one sends a file without asking whether it is there and without
saying how far it is, drops fields of ``/api/show`` (system prompt, messages), and knows no ``_debug_render_only``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunesmith.chat import ollama_api
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama_reply import Reply, asking_logprobs, read_reply

if TYPE_CHECKING:
    import httpx

CHUNK = 4 * 2**20

Messages = Sequence[Mapping[str, Any]]


class OllamaServer:
    """A server at ``url`` (None: ``$OLLAMA_HOST``, else 127.0.0.1:11434). A context manager; nothing is sent before a call.

    Every method raises ServerError, with a hint, when the server cannot be reached or refuses.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = ollama_api.address(url)
        self.warning = ollama_api.remote_warning(self.url)
        self._client = ollama_api.http_client(self.url)

    def __enter__(self) -> OllamaServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calling twice is harmless."""
        self._client.close()

    # --- asking ---------------------------------------------------------------------------------------------------

    def version(self) -> str:
        """The server's version, for example ``0.24.0``, within seconds."""
        import httpx

        limit = httpx.Timeout(5.0, connect=ollama_api.CONNECT_SECONDS)
        found = self._json(self._send("GET", "/api/version", "asking its version", timeout=limit).text)
        if "version" not in found:
            raise ollama_api.not_ollama(self.url)
        return str(found["version"])

    def alive(self) -> bool:
        """Whether an Ollama server answers at the address; never raises, takes at most seconds."""
        try:
            self.version()
        except UserError:
            return False
        return True

    def names(self) -> tuple[str, ...]:
        """The models the server has, as ``name:tag``, newest first."""
        found = self._json(self._send("GET", "/api/tags", "listing its models").text)
        return tuple(model["name"] for model in found.get("models") or [])

    def show(self, name: str) -> dict[str, Any] | None:
        """What the server knows of a model (``/api/show``); None when it has none of that name."""
        doing = f"looking at {name}"
        response = self._send("POST", "/api/show", doing, accept=(404,), json={"model": ollama_api.check_name(name)})
        return None if response.status_code == 404 else self._json(response.text)

    def rendered_prompt(
        self, name: str, messages: Messages, *, tools: Sequence[Any] = (), think: bool | None = None
    ) -> str | None:
        """The text the server would give the model for this conversation, without the tokenizer's own beginning token.

        None when the server does not tell (it is asked through ``_debug_render_only``, which not every version knows).
        """
        body = self._chat_body(name, messages, tools, think) | {
            "options": {"num_predict": 1},
            "_debug_render_only": True,
        }
        found = self._answer("/api/chat", f"rendering a prompt for {name}", body)
        told = (found.get("_debug_info") or {}).get("rendered_template")
        return None if told is None else str(told)

    def chat(
        self,
        name: str,
        messages: Messages,
        options: Mapping[str, Any],
        *,
        tools: Sequence[Any] = (),
        think: bool | None = None,
        top: int = 0,
    ) -> Reply:
        """One whole answer with the model's template. ``top``: tell so many of the most likely tokens at each step."""
        body = self._chat_body(name, messages, tools, think) | {"options": dict(options)} | asking_logprobs(top)
        found = self._answer("/api/chat", f"asking {name}", body)
        message = found.get("message") or {}
        return read_reply(found, str(message.get("content") or ""), str(message.get("thinking") or ""))

    def complete(self, name: str, prompt: str, options: Mapping[str, Any], *, top: int = 0) -> Reply:
        """What follows ``prompt`` as it stands (``raw``: no template; only the tokenizer's own beginning token is added)."""
        body: dict[str, Any] = {"model": name, "prompt": prompt, "raw": True, "stream": False, "options": dict(options)}
        found = self._answer("/api/generate", f"asking {name} to go on", body | asking_logprobs(top))
        return read_reply(found, str(found.get("response") or ""))

    # --- changing -------------------------------------------------------------------------------------------------

    def upload(self, path: Path, progress: Progress = SILENT) -> tuple[str, int]:
        """Send a file unless the server has it. Returns its SHA-256 in hex and the bytes that were sent.

        The server keeps nothing of a file that broke off: the next call begins again.
        """
        size, digest = path.stat().st_size, sha256(path, progress)
        place = f"/api/blobs/sha256:{digest}"
        doing = f"sending {path.name}"
        if self._send("HEAD", place, doing, accept=(404,)).status_code == 200:
            progress.say(f"the server has {path.name} already; nothing is sent again")
            return digest, 0
        progress.start(f"send to {self.url}", size, "B")
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._send("POST", place, doing, content=_chunks(path, progress), headers=headers)
        progress.finish()
        return digest, size

    def create(
        self,
        name: str,
        *,
        files: Mapping[str, str] | None = None,
        adapters: Mapping[str, str] | None = None,
        from_: str | None = None,
        quantize: str | None = None,
        modelfile: Modelfile | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Make the model ``name`` of uploaded ``files`` or of the model ``from_``, perhaps with ``adapters``, perhaps quantized there.

        ``files`` and ``adapters``: file name -> SHA-256 in hex. ``modelfile``: its template, system prompt, parameters, licence and
        messages are sent, its ``from_`` is not. A model of that name is replaced, as Ollama does.
        """
        body: dict[str, Any] = {"model": ollama_api.check_name(name), "from": from_, "quantize": quantize}
        body["files"], body["adapters"] = _digests(files), _digests(adapters)
        if modelfile is not None:
            body |= {
                "template": modelfile.template,
                "system": modelfile.system,
                "parameters": dict(modelfile.parameters),
                "license": modelfile.license,
                "messages": list(modelfile.messages),
            }
        body = {key: value for key, value in body.items() if value}
        progress.start(f"create {name}")
        last = ""
        for line in self._lines("/api/create", f"creating {name}", body):
            last = str(line.get("status", ""))
            if last and "total" not in line:
                progress.say(last)
        if last != "success":
            raise ollama_api.refused(f"creating {name}", None, f"it stopped at {last!r} without saying why")
        progress.finish()

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name; a model that has it is replaced. No weights are copied."""
        body = {"source": ollama_api.check_name(source), "destination": ollama_api.check_name(destination)}
        self._send("POST", "/api/copy", f"naming {destination}", json=body)

    def remove(self, name: str) -> bool:
        """Take a model from the server (``/api/delete``); False when it has none of that name."""
        doing = f"removing {name}"
        body = {"model": ollama_api.check_name(name)}
        return self._send("DELETE", "/api/delete", doing, accept=(404,), json=body).status_code != 404

    def unload(self, name: str) -> None:
        """Have the server forget the loaded model and every prompt it remembers of it."""
        self._send("POST", "/api/generate", f"unloading {name}", json={"model": name, "keep_alive": 0})

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _chat_body(self, name: str, messages: Messages, tools: Sequence[Any], think: bool | None) -> dict[str, Any]:
        body: dict[str, Any] = {"model": name, "messages": [dict(m) for m in messages], "stream": False}
        if tools:
            body["tools"] = list(tools)
        return body if think is None else body | {"think": think}

    def _answer(self, path: str, doing: str, body: dict[str, Any]) -> dict[str, Any]:
        found = self._json(self._send("POST", path, doing, json=body).text)
        if "error" in found:
            raise ollama_api.refused(doing, None, str(found["error"]))
        return found

    def _send(self, method: str, path: str, doing: str, accept: Sequence[int] = (), **request: Any) -> httpx.Response:
        """One exchange; any status of 300 or more that is not in ``accept`` is a ServerError."""
        import httpx

        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise ollama_api.unreachable(self.url, error, doing) from error
        if response.status_code not in accept:
            self._must_be_good(response, doing)
        return response

    def _must_be_good(self, response: httpx.Response, doing: str) -> None:
        if response.is_redirect:
            raise ollama_api.redirected(self.url, response.status_code, response.headers.get("Location", ""), doing)
        if response.status_code >= 300:
            raise ollama_api.refused(doing, response.status_code, response.read().decode("utf-8", "replace"))

    def _lines(self, path: str, doing: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON lines of a streamed answer. An ``error`` line inside a 200 is an error."""
        import httpx

        try:
            with self._client.stream("POST", path, json=body) as response:
                self._must_be_good(response, doing)
                for text in filter(str.strip, response.iter_lines()):
                    line = self._json(text)
                    if "error" in line:
                        raise ollama_api.refused(doing, None, str(line["error"]))
                    yield line
        except httpx.TransportError as error:
            raise ollama_api.unreachable(self.url, error, doing) from error

    def _json(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ollama_api.not_ollama(self.url)
        return found


def sha256(path: Path, progress: Progress = SILENT) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    progress.start(f"digest of {path.name}", path.stat().st_size, "B")
    total = hashlib.sha256()
    for chunk in _chunks(path, progress):
        total.update(chunk)
    progress.finish(total.hexdigest())
    return total.hexdigest()


def manual_command(modelfile: Path, name: str) -> str:
    """The command that does the same by hand with a ``Modelfile``, quoted for this system's shell."""
    command = ["ollama", "create", ollama_api.check_name(name), "-f", str(modelfile)]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def _digests(files: Mapping[str, str] | None) -> dict[str, str]:
    """File name -> ``sha256:…``. Raises ExportError for a digest that is none, before anything is sent."""
    for name, digest in (files or {}).items():
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ExportError(f"{digest!r} is no SHA-256 in hex, for {name}", hint="upload the file first")
    return {name: f"sha256:{digest}" for name, digest in (files or {}).items()}


def _chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            progress.advance(len(chunk))
