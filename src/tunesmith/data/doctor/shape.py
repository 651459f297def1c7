"""The plain figures of a set: kinds, roles, turns, systems, tools, labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.doctor.base import Row
from tunesmith.data.example import Chat, Feedback, Preference, Prompt, Text

KIND = {"Chat": "chat", "Preference": "preference", "Feedback": "feedback", "Prompt": "prompt", "Text": "text"}


@dataclass
class Shape:
    """Counted row by row (``add``). ``turns``: number of turns without the system's -> rows."""

    rows: int = 0
    unreadable: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    systems: int = 0
    tools: int = 0
    media: int = 0
    thoughts: int = 0
    flagged: int = 0
    references: int = 0
    good: int = 0
    characters: int = 0

    def add(self, row: Row) -> None:
        """Count a row that could be read."""
        example = row.example
        self.rows += 1
        self.characters += len(row.text)
        self.kinds[KIND[type(example).__name__]] += 1
        if isinstance(example, Feedback):
            self.good += example.good
            example = example.chat
        if isinstance(example, Text):
            return
        messages = (*example.prompt, *example.chosen) if isinstance(example, Preference) else example.messages
        roles = [m.role for m in messages]
        self.roles.update(roles)
        self.turns[len(roles) - roles.count("system")] += 1
        self.systems += "system" in roles
        self.tools += bool(example.tools) or any(m.tool_calls for m in messages)
        self.media += bool(example.media)
        self.thoughts += any(m.thinking for m in messages)
        self.flagged += isinstance(example, Chat) and any(m.train is not None for m in messages)
        self.references += isinstance(example, Prompt) and (example.reference is not None or bool(example.verifier))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {key: value for key, value in vars(self).items() if not isinstance(value, Counter)}
        return plain | {
            "kinds": dict(self.kinds), "roles": dict(self.roles), "turns": {str(k): v for k, v in sorted(self.turns.items())},
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For people."""
        said = ", ".join(f"{n:,} {kind}" for kind, n in self.kinds.most_common())
        lines = [
            f"{self.rows:,} readable row{'' if self.rows == 1 else 's'} ({said or 'none'}), {self.characters:,} characters"
        ]
        if self.turns:
            low, high = min(self.turns), max(self.turns)
            usual, how_many = self.turns.most_common(1)[0]
            spread = (
                f"{low}" if low == high else f"{low} to {high}, mostly {usual} ({how_many / max(1, self.rows):.0%})"
            )
            lines.append(
                f"turns per row: {spread}; roles: {', '.join(f'{r} {n:,}' for r, n in self.roles.most_common())}"
            )
        for count, what in (
            (self.systems, "a system prompt"),
            (self.tools, "tools"),
            (self.media, "pictures, sound or film"),
            (self.thoughts, "thinking"),
            (self.flagged, "turns marked to be learned or not"),
            (self.references, "a reference answer or verifier"),
        ):
            if count:
                lines.append(f"{count:,} row{'' if count == 1 else 's'} with {what}")
        if self.kinds["feedback"]:
            lines.append(f"{self.good:,} marked good, {self.kinds['feedback'] - self.good:,} bad")
        return lines
