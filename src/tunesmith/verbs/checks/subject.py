"""What is proved: a GGUF with its Modelfile, how its model was trained to be asked, and the server's model made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.config.errors import RenderError
from tunesmith.export.go_probes import ModelTemplate, model_template
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama import OllamaServer
from tunesmith.verbs.gguf import GgufExport, replace_folder, trained_system
from tunesmith.verbs.targets import Target

if TYPE_CHECKING:
    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.data.example import Chat
    from tunesmith.render.conversation import Renderer
    from tunesmith.verbs.checks.asked import Asked

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """``renderer`` renders as in training, ``file`` is the GGUF opened in this process, ``asked`` the rows it was not trained on."""

    target: Target
    made: GgufExport
    renderer: Renderer
    file: LlamaCppEngine
    asked: Asked

    @property
    def modelfile(self) -> Modelfile:
        """What the server is told beside the weights."""
        return self.made.content

    @cached_property
    def ids_of_bytes(self) -> dict[bytes, list[int]]:
        """The tokens of the GGUF by the bytes they stand for; several where they cannot be told apart."""
        found: dict[bytes, list[int]] = {}
        for token in range(self.file.vocabulary.size):
            found.setdefault(self.file.vocabulary.piece(token, special=True), []).append(token)
        return found

    @property
    def context(self) -> int:
        """Most tokens of a conversation, as the Modelfile says."""
        return min(int(self.modelfile.parameters.get("num_ctx", 4096)), self.file.n_ctx)  # type: ignore[arg-type]

    @cached_property
    def template(self) -> ModelTemplate:
        """The model's own chat template: how it renders, and whether it knows tools and thinking."""
        return model_template(self.renderer)

    def training_ids(self, messages: Messages, tools: Sequence[Any] = (), think: bool | None = None) -> list[int]:
        """Token ids of a prompt as in training. Raises RenderError."""
        return self.renderer.encode_text(self.training_text(messages, tools, think))[0]

    def training_text(self, messages: Messages, tools: Sequence[Any] = (), think: bool | None = None) -> str:
        """The text of the same. ``think`` None: nothing is said of thinking."""
        return self.template.render(self._opened_by(self.system or self.modelfile.system, messages), tools, think)

    @cached_property
    def think(self) -> bool | None:
        """What a request says of thinking so that it is asked as in training, where nothing is said.

        None: it need not say anything. False: the chat template leaves thinking off by itself, where newer servers turn it on.
        """
        if not self.template.thinking:
            return None
        hello = [{"role": "user", "content": "Hi"}]
        try:
            unsaid, on, off = (self.training_text(hello, (), think) for think in (None, True, False))
        except RenderError:
            return None
        return False if unsaid == off != on else None

    @cached_property
    def system(self) -> str | None:
        """The system prompt of all its training, as the run wrote it down: the Modelfile is to have it."""
        return trained_system(self.target)

    def as_served(self, messages: Messages) -> list[dict[str, Any]]:
        """The conversation with what the Modelfile puts before it: example turns, and its system prompt where there is none."""
        return self._opened_by(self.modelfile.system, messages)

    def _opened_by(self, system: str | None, messages: Messages) -> list[dict[str, Any]]:
        own = [dict(m) for m in self.modelfile.messages]
        if system and messages[0]["role"] != "system":
            own.insert(0, {"role": "system", "content": system})
        return [*own, *(dict(m) for m in messages)]

    def without_bos(self, text: str) -> str:
        """``text`` as it is given to a program that adds the beginning token by itself, when the file says that it does."""
        vocabulary = self.file.vocabulary
        return text.removeprefix(vocabulary.text(vocabulary.bos)) if vocabulary.adds_bos else text


@dataclass(frozen=True)
class Served:
    """The model ``name`` on ``server``; ``shown`` is what ``/api/show`` tells, ``wrong`` what of it is not as meant."""

    server: OllamaServer
    name: str
    shown: Mapping[str, Any]
    wrong: Mapping[str, str]


@contextmanager
def opened(target: Target, made: GgufExport, asked: Asked) -> Iterator[Subject]:
    """The subject of a proof, with the GGUF open in llama.cpp."""
    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.models.devices import usable_cores

    with LlamaCppEngine(made.file, threads=usable_cores()) as file:
        renderer = replace_folder(target, made.merged)
        chats = tuple(chat for chat in asked.chats if _renders(renderer, chat))
        yield Subject(target, made, renderer, file, replace(asked, chats=chats))


def _renders(renderer: Renderer, chat: Chat) -> bool:
    """Whether the chat template takes a row and its prompt: training left out the rows that it refuses."""
    try:
        renderer.text(chat.prompt(), generation=True, tools=chat.tools)
        renderer.text(chat.as_dicts(), tools=chat.tools)
    except RenderError:
        return False
    return True


def for_server(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the form of Ollama's API: thinking, arguments as objects, the tool's name."""
    import json

    found: dict[str, Any] = {"role": message["role"], "content": message.get("content") or ""}
    thinking = next((message[k] for k in ("reasoning_content", "reasoning", "thinking") if message.get(k)), "")
    if thinking:
        found["thinking"] = thinking
    if message.get("name"):
        found["tool_name"] = message["name"]
    if message.get("tool_call_id"):
        found["tool_call_id"] = message["tool_call_id"]
    calls = []
    for call in message.get("tool_calls") or ():
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"] or "{}")
        calls.append({**call, "function": function})
    return found | ({"tool_calls": calls} if calls else {})
