"""Deploy a GGUF to a running Ollama server, and prove that what the server has is what was sent.

The way: digest of the file, upload unless the server has it, create, read back, ask one question. Protocol:
https://docs.ollama.com/api and recorded exchanges with a real server (tests/recorded/ollama). It knows nothing of how
the GGUF was made, and does not choose the template.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunesmith.chat import ollama_api
from tunesmith.chat.base import Messages
from tunesmith.config.errors import ExportError, ServerError
from tunesmith.config.progress import SILENT, Progress
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama_shown import differences, notes

if TYPE_CHECKING:
    import httpx

CHUNK = 4 * 2**20
QUESTION = "Answer in one short sentence: who are you?"


@dataclass(frozen=True)
class DeployReport:
    """What was deployed and what was proved.

    ``digest`` is the GGUF's SHA-256 in hex, ``uploaded_bytes`` 0 when the server had the file, ``replaced`` whether a
    model of that name was there before. ``checks`` are the fields read back and found as intended. ``answer`` is the
    reply to ``question`` with the model's own parameters, after ``seconds`` (loading included).
    """

    name: str
    url: str
    version: str
    digest: str
    size_bytes: int
    uploaded_bytes: int
    replaced: bool
    capabilities: tuple[str, ...]
    checks: tuple[str, ...]
    question: str
    answer: str
    seconds: float
    notes: tuple[str, ...] = ()


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
        except ServerError:
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

    def rendered_prompt(self, name: str, messages: Messages) -> str | None:
        """The text the server would give the model for this conversation, without the tokenizer's own beginning token.

        None when the server does not tell (it is asked through ``_debug_render_only``, which not every version knows).
        """
        body = {
            "model": name,
            "messages": list(messages),
            "stream": False,
            "options": {"num_predict": 1},
            "_debug_render_only": True,
        }
        found = self._json(self._send("POST", "/api/chat", f"rendering a prompt for {name}", json=body).text)
        told = (found.get("_debug_info") or {}).get("rendered_template")
        return None if told is None else str(told)

    def remove(self, name: str) -> bool:
        """Take a model from the server (``/api/delete``); False when it has none of that name."""
        doing = f"removing {name}"
        body = {"model": ollama_api.check_name(name)}
        return self._send("DELETE", "/api/delete", doing, accept=(404,), json=body).status_code != 404

    # --- deploying ------------------------------------------------------------------------------------------------

    def deploy(self, gguf: Path, name: str, modelfile: Modelfile, progress: Progress = SILENT) -> DeployReport:
        """Make ``name`` answer from ``gguf`` with ``modelfile``'s template, system prompt, parameters and messages.

        Its ``from_`` is not used. A model of that name is replaced, as Ollama does. Raises UserError (name), ExportError
        (the file, or a model that came out otherwise than intended) and ServerError.
        """
        ollama_api.check_name(name)
        size = _check_gguf(gguf)
        version = self.version()
        if self.warning:
            progress.say(self.warning)
        replaced = self.show(name) is not None
        if replaced:
            progress.say(f"{name} exists on {self.url} and is replaced")
        digest = sha256(gguf, progress)
        uploaded = self._upload(gguf, size, digest, progress)
        self._create(name, digest, modelfile, progress)
        shown = self.show(name)
        if shown is None:
            raise ExportError(f"Ollama says that it created {name}, but does not have it")
        wrong, proved = differences(shown, modelfile, digest)
        if wrong:
            raise ExportError(
                f"{name} came out otherwise than intended: {'; '.join(wrong)}",
                hint=f"do not use it: `ollama rm {name}` removes it, then update Ollama and deploy again",
            )
        progress.start(f"asking {name}")
        began = time.monotonic()
        answer = self._ask(name)
        seconds = time.monotonic() - began
        progress.finish(answer)
        return DeployReport(
            name=name,
            url=self.url,
            version=version,
            digest=digest,
            size_bytes=size,
            uploaded_bytes=uploaded,
            replaced=replaced,
            capabilities=tuple(shown.get("capabilities") or ()),
            checks=proved,
            question=QUESTION,
            answer=answer,
            seconds=seconds,
            notes=notes(shown, modelfile, answer),
        )

    def _upload(self, gguf: Path, size: int, digest: str, progress: Progress) -> int:
        """Send the file unless the server has it; bytes sent."""
        path = f"/api/blobs/sha256:{digest}"
        doing = f"sending {gguf.name}"
        if self._send("HEAD", path, doing, accept=(404,)).status_code == 200:
            progress.say(f"the server has {gguf.name} already; nothing is sent again")
            return 0
        progress.start(f"send to {self.url}", size, "B")
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._send("POST", path, doing, content=_chunks(gguf, progress), headers=headers)
        progress.finish()
        return size

    def _create(self, name: str, digest: str, modelfile: Modelfile, progress: Progress) -> None:
        body: dict[str, Any] = {
            "model": name,
            "files": {"model.gguf": f"sha256:{digest}"},
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

    def _ask(self, name: str) -> str:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": False,
            "options": {"num_predict": 32},
        }
        found = self._json(self._send("POST", "/api/chat", f"asking {name} its first question", json=body).text)
        if "error" in found:
            raise ollama_api.refused(f"asking {name} its first question", None, str(found["error"]))
        return str((found.get("message") or {}).get("content") or "")

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, doing: str, accept: Sequence[int] = (), **request: Any) -> httpx.Response:
        """One exchange; any status of 400 or more that is not in ``accept`` is a ServerError."""
        import httpx

        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise ollama_api.unreachable(self.url, error, doing) from error
        if response.status_code >= 300 and response.status_code not in accept:
            raise ollama_api.refused(doing, response.status_code, response.text)
        return response

    def _lines(self, path: str, doing: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON lines of a streamed answer. An ``error`` line inside a 200 is an error."""
        import httpx

        try:
            with self._client.stream("POST", path, json=body) as response:
                if response.status_code >= 300:
                    raise ollama_api.refused(doing, response.status_code, response.read().decode("utf-8", "replace"))
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


def manual_command(folder: Path, name: str) -> str:
    """The command that does the same by hand with the folder's ``Modelfile``, quoted for this system's shell."""
    command = ["ollama", "create", ollama_api.check_name(name), "-f", str(folder / "Modelfile")]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def _chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            progress.advance(len(chunk))


def _check_gguf(path: Path) -> int:
    """Size in bytes of a whole GGUF file. Raises ExportError for anything else, before a byte is sent."""
    if not path.is_file():
        raise ExportError(f"there is no file {path}", hint="export the model with `--to gguf` first")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ExportError(f"{path} is not a GGUF file", hint="export the model with `--to gguf` first")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise ExportError(
            f"{path.name} is one part of a split GGUF, which Ollama cannot load",
            hint="join the parts first: `llama-gguf-split --merge FIRST-PART OUT`",
        )
    return path.stat().st_size
