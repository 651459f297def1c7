"""What a row of any data format becomes. Small frozen records; no room after ``data`` sees a raw row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One turn. ``train`` says whether it is learned: None = as its role says (assistant turns are)."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    train: bool | None = None

    @property
    def learned(self) -> bool:
        return self.role == "assistant" if self.train is None else self.train

    def as_dict(self) -> dict[str, Any]:
        """The form chat templates take."""
        value: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            value["tool_calls"] = list(self.tool_calls)
        return value


@dataclass(frozen=True)
class Chat:
    """A conversation to learn from. ``origin`` is ``file:row`` for messages."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    media: tuple[str, ...] = ()
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


Example = Chat
"""The union of example kinds; preference pairs, feedback, prompts and plain text join it with their stages."""
