"""Conversations by which renderings are compared: those the TEMPLATE was chosen by, some more, and prompts of the model's own rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from tunesmith.config.errors import RenderError
from tunesmith.export.go_probes import PROBES, THINKING_PROBES, TOOL_PROBES, Probe

if TYPE_CHECKING:
    from tunesmith.verbs.checks.subject import Subject

DIGITS = Probe(
    "digits",
    (
        {"role": "user", "content": "In 2024: 3.14159, 1,000,000 and 0x7f; 12345678?"},
        {"role": "assistant", "content": "1 22 333 4444"},
        {"role": "user", "content": "5  6"},
    ),
)
ROWS = 2
"""Prompts of so many rows are compared too."""


def probes_for(subject: Subject, can: Collection[str]) -> list[Probe]:
    """Those that a model can be asked, plain ones first; with tools and thinking where the server's model ``can`` (its capabilities)."""
    rows = [row for row in subject.asked.rows if len(subject.training_ids(row.prompt(), row.tools)) < subject.context]
    found = [*PROBES, DIGITS]
    found += [Probe(f"row {i + 1}", tuple(row.prompt()), tools=tuple(row.tools)) for i, row in enumerate(rows[:ROWS])]
    found += TOOL_PROBES if subject.template.tools else ()
    found += THINKING_PROBES if subject.template.thinking else ()
    able = {"tools": "tools" in can, "thinking": "thinking" in can}
    return [p for p in found if (able["tools"] or not p.tools) and (able["thinking"] or p.think is None)]


def refused(subject: Subject, probe: Probe) -> bool:
    """Whether the model's own template does not take the conversation, or it is too long for the model."""
    try:
        return len(subject.training_ids(probe.messages, probe.tools, probe.think)) >= subject.context
    except RenderError:
        return True


def limited(probes: Sequence[Probe], names: Collection[str]) -> tuple[str, ...]:
    """The limits of the probes named, each once."""
    return tuple(dict.fromkeys(probe.limit for probe in probes if probe.name in names and probe.limit))
