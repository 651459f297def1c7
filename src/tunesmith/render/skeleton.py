"""The static text that a chat template puts around the contents, derived once per shape of conversation.

A shape is everything of a conversation but its words: roles, what is learned, which optional parts are there, the tools. Its
skeleton comes from one exact rendering with a marker in place of every part. A conversation of that shape is then rendered
once; where that text is the skeleton filled with its own words, the learned spans are known without further renderings.

A template may also look *into* the words (``'</think>' in content``). So every string that the template compares or searches
for is a ``guard``: a conversation whose words hold one takes the exact way. Nothing here knows what any template says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat, Message
from tunesmith.render.slots import Span

PARTS = ("thinking", "content")
"""The fields of a message that are free text."""
_EDGES = {"strip", "lstrip", "rstrip", "trim", "split", "replace", "join", "indent"}
"""Calls that change the text itself: what they do shows in the rendered text, which is compared."""


@dataclass(frozen=True)
class Guards:
    """Words that make a template do something else: ``inside`` anywhere in a part, ``whole`` as the whole part."""

    inside: tuple[str, ...]
    whole: frozenset[str]

    def stop(self, part: str) -> bool:
        """Whether a conversation with this part must take the exact way."""
        return part in self.whole or any(word in part for word in self.inside)


def guards_of(template: str) -> Guards | None:
    """The guards of a Jinja template; None when it cannot be parsed (it then has no fast way)."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import loopcontrols

    plain = template.replace("{%- generation", "{%- filter string").replace("{% generation", "{% filter string")
    plain = plain.replace("{%- endgeneration", "{%- endfilter").replace("{% endgeneration", "{% endfilter")
    try:
        tree = jinja2.Environment(extensions=[loopcontrols]).parse(plain)
    except jinja2.TemplateError:
        return None
    inside, whole = {"\u2402", "\u2403"}, set()
    for node in tree.find_all((nodes.Compare, nodes.Test, nodes.Filter, nodes.Call)):
        values = [c.value for c in node.find_all(nodes.Const) if isinstance(c.value, str) and c.value]
        name = getattr(node.node, "attr", "") if isinstance(node, nodes.Call) else getattr(node, "name", "")
        if isinstance(node, nodes.Compare) and all(o.op in ("eq", "ne") for o in node.ops):
            whole |= set(values)
        elif name in _EDGES:
            inside |= {v for v in values if v.strip()}
        else:
            inside |= set(values)
    # What is only an attribute's name (`message['content']`) stands in a Getitem and says nothing about the words.
    names = {g.arg.value for g in tree.find_all(nodes.Getitem) if isinstance(g.arg, nodes.Const)}
    return Guards(tuple(sorted(inside - names)), frozenset(whole))


@dataclass(frozen=True)
class Skeleton:
    """``pieces[0] + part + pieces[1] + part + …``; ``slots`` = (message, field) of each part, in the order of the text.

    ``spans``: learned spans; each end is (piece, characters into that piece).
    """

    pieces: tuple[str, ...]
    slots: tuple[tuple[int, str], ...]
    spans: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def spans_in(self, chat: Chat, text: str) -> list[Span] | None:
        """Learned spans of ``text``, the rendered ``chat``; None where it is not this skeleton with the chat's words.

        The words are tried as they are, then without white space around them (many templates trim).
        """
        parts = [getattr(chat.messages[i], field) for i, field in self.slots]
        for words in (parts, [p.strip() for p in parts]):
            starts: list[int] = []
            filled: list[str] = []
            place = 0
            for piece, word in zip(self.pieces, words):
                starts.append(place)
                place += len(piece) + len(word)
                filled += (piece, word)
            starts.append(place)
            if place + len(self.pieces[-1]) == len(text) and "".join((*filled, self.pieces[-1])) == text:
                return [(starts[p] + a, starts[q] + b) for (p, a), (q, b) in self.spans]
        return None


def shape_of(chat: Chat) -> tuple[object, ...] | None:
    """What two conversations must share to have one skeleton; None for those that have none (tool calls, media).

    Blank parts belong to the shape as they are: templates treat them in their own ways.
    """
    if chat.media:
        return None
    shape: list[object] = [repr(chat.tools) if chat.tools else ""]
    for m in chat.messages:
        if m.tool_calls:
            return None
        blank = tuple(None if value.strip() else value for value in (m.thinking, m.content))
        shape.append((m.role, m.train, m.name, m.tool_call_id, blank))
    return tuple(shape)


def derive(chat: Chat, text_of: Callable[[Chat], str], spans_of: Callable[[Chat, str], list[Span]]) -> Skeleton | None:
    """The skeleton of a chat's shape; None when a marker appears twice or a learned span begins or ends inside one."""
    messages: list[Message] = []
    markers: dict[str, tuple[int, str]] = {}
    for i, message in enumerate(chat.messages):
        changes: dict[str, str] = {}
        for field in PARTS:
            if getattr(message, field).strip():
                changes[field] = f"\u2402part{i}{field}\u2403"
                markers[changes[field]] = (i, field)
        messages.append(replace(message, **changes))  # type: ignore[arg-type]
    probe = replace(chat, messages=tuple(messages))
    try:
        text = text_of(probe)
        spans = spans_of(probe, text)
    except RenderError:
        return None
    found = sorted((text.find(m), m) for m in markers if m in text)
    if any(text.count(m) > 1 for _, m in found):
        return None
    pieces, place = [], 0
    edges: list[int] = []
    for at, marker in found:
        pieces.append(text[place:at])
        edges.append(place)
        place = at + len(marker)
    pieces.append(text[place:])
    edges.append(place)
    ends = [(_locate(a, edges, pieces), _locate(b, edges, pieces)) for a, b in spans]
    if any(a is None or b is None for a, b in ends):
        return None
    return Skeleton(tuple(pieces), tuple(markers[m] for _, m in found), tuple(ends))  # type: ignore[arg-type]


def _locate(place: int, edges: Sequence[int], pieces: Sequence[str]) -> tuple[int, int] | None:
    """(piece, characters into it) of a place in the text; None inside a marker."""
    for k, (edge, piece) in enumerate(zip(edges, pieces)):
        if edge <= place <= edge + len(piece):
            return k, place - edge
    return None
