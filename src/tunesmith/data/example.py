"""What a row of any data format becomes. Small frozen records; no room after ``data`` sees a raw row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

Role = Literal["system", "user", "assistant", "tool"]
MEDIA_KINDS = ("image", "audio", "video")


@dataclass(frozen=True)
class Message:
    """One turn. ``train`` says whether it is learned: None = as its role says (assistant turns are).

    ``thinking`` is what the assistant thought before ``content``; where a row writes it into the text (``<think>…</think>``
    at the beginning) it is taken apart, and the chat template puts it back in its own way.
    ``tool_calls`` are ``{"type": "function", "id"?: …, "function": {"name": …, "arguments": {…}}}``.
    ``name`` is the tool that a ``tool`` turn comes from, ``tool_call_id`` the call that it answers.
    """

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    train: bool | None = None
    thinking: str = ""
    name: str = ""
    tool_call_id: str = ""

    @property
    def learned(self) -> bool:
        return self.role == "assistant" if self.train is None else self.train

    def as_dict(self) -> dict[str, Any]:
        """The form chat templates take."""
        value: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking:
            value["reasoning_content"] = self.thinking
        if self.tool_calls:
            value["tool_calls"] = list(self.tool_calls)
        for key in ("name", "tool_call_id"):
            if getattr(self, key):
                value[key] = getattr(self, key)
        return value


@dataclass(frozen=True)
class Media:
    """A picture, sound or film of a conversation: carried, not opened. ``source`` is a path or an address.

    The n-th of a kind belongs to the n-th ``<image>``, ``<audio>`` or ``<video>`` in the texts.
    """

    kind: Literal["image", "audio", "video"]
    source: str


@dataclass(frozen=True)
class Chat:
    """A conversation to learn from. ``origin`` is ``file:row`` for messages."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    media: tuple[Media, ...] = ()
    origin: str = field(default="", compare=False)

    def as_dicts(self) -> list[dict[str, Any]]:
        return [m.as_dict() for m in self.messages]

    def prompt(self) -> list[dict[str, Any]]:
        """The messages before the last assistant turn: what is asked at evaluation."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return [m.as_dict() for m in self.messages[:last]]

    def answer(self) -> str:
        """The last assistant turn."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the better one first. ``prompt`` ends with a user or tool turn; ``chosen`` and ``rejected``
    are the turns after it (mostly one assistant turn each)."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    media: tuple[Media, ...] = ()
    origin: str = field(default="", compare=False)

    def chats(self) -> tuple[Chat, Chat]:
        """The chosen and the rejected conversation; the turns of the prompt are not learned."""
        before = tuple(replace(m, train=False) for m in self.prompt)
        chosen, rejected = (
            Chat((*before, *turns), self.tools, self.media, self.origin) for turns in (self.chosen, self.rejected)
        )
        return chosen, rejected


@dataclass(frozen=True)
class Feedback:
    """A conversation whose last answer was found good or bad (KTO)."""

    chat: Chat
    good: bool

    @property
    def origin(self) -> str:
        return self.chat.origin


@dataclass(frozen=True)
class Prompt:
    """What is asked, the answer left to the model (PPO, GRPO). ``reference`` is a right answer to compare with;
    ``verifier`` says how an answer is judged: ``{"kind": "math" | "regex" | …, …}``, read by the stage's rewards."""

    messages: tuple[Message, ...]
    reference: str | None = None
    verifier: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    media: tuple[Media, ...] = ()
    origin: str = field(default="", compare=False)


@dataclass(frozen=True)
class Text:
    """Plain text, every token of which is learned (pre-training)."""

    text: str
    origin: str = field(default="", compare=False)


Example: TypeAlias = Chat | Preference | Feedback | Prompt | Text


def system_of(example: Example) -> str:
    """The text of an example's system turn; empty when it has none, as plain texts have."""
    if isinstance(example, Text):
        return ""
    chat = example.chat if isinstance(example, Feedback) else example
    turns = chat.prompt if isinstance(chat, Preference) else chat.messages
    return turns[0].content if turns and turns[0].role == "system" else ""


KINDS: dict[str, type[Any]] = {
    "chat": Chat, "preference": Preference, "feedback": Feedback, "prompt": Prompt, "text": Text,
}  # fmt: skip
"""Names of the kinds, for messages and for what a stage asks for."""
