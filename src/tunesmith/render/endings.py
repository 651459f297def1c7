"""How a chat template ends turns and begins an answer, found by rendering probes with it.

Special tokens end turns in most templates; the end is what stands after an answer both in the middle and at the end of a
conversation. In some a middle turn ends otherwise than the last one, or in nothing but the next turn's header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.config.errors import RenderError
from tunesmith.render.traits import CALL_ID, QUESTION, WORD, call_of, tool_named

ANSWER, NEXT = f"{WORD}a", f"{WORD}b"


class TextRenderer(Protocol):
    """What is needed of a renderer."""

    tokenizer: Any

    def text(
        self, messages: Sequence[dict[str, Any]], *, generation: bool = False, tools: Sequence[Any] = ()
    ) -> str: ...


@dataclass(frozen=True)
class Endings:
    """Texts as the template writes them; empty where it writes none.

    ``last`` and ``middle`` end an answer at the end and in the middle of a conversation, ``call`` a turn that calls a tool
    (``call_tail`` is all that stands after the last argument of its call).
    ``openings``: what stands between the words of a turn (by its role) and an answer, both in a prompt and where the answer is
    written already; ``header`` is the part of it that opens the assistant's turn. ``headers``: where no turn has an end, the special tokens that begin the
    next turn; models of such templates stop by writing them. ``following`` begins the turn after a middle answer.
    """

    specials: tuple[str, ...]
    last: str
    middle: str
    call: str
    call_tail: str
    openings: dict[str, str]
    header: str
    headers: tuple[str, ...]
    following: str

    def length(self, tail: str, *, call: bool = False, wordless: bool = False) -> int:
        """Characters of ``tail`` (what the template writes after the words of a turn) that belong to the turn.

        ``wordless``: the turn has no words; ``tail`` is then all of it, and the end need not be at the beginning.
        """
        if wordless and not call:
            ends = [end.strip() for end in (self.last, self.middle, *self.headers) if end.strip()]
            return min((tail.find(end) + len(end) for end in ends if end in tail), default=0)
        if call:
            at = tail.find(self.call) if self.call else -1
            if at >= 0:
                return at + len(self.call)
            found = re.search("|".join(map(re.escape, self.headers)), tail) if self.headers else None
            return found.end() if found else len(_shared(tail, self.call_tail).rstrip())
        space = len(tail) - len(tail.lstrip())
        rest = tail[space:]
        for end in (self.last, self.middle, *self.headers):
            if end and rest.startswith(end.strip()):
                return space + len(end.strip())
        return 0


def find_endings(renderer: TextRenderer) -> Endings:
    """Endings of ``renderer``'s template. Raises RenderError when it cannot even render a question and an answer."""
    specials = special_texts(renderer.tokenizer)
    answer, following = {"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT}
    final = _after(renderer.text([QUESTION, answer]), ANSWER)
    try:
        between, _, _ = _after(renderer.text([QUESTION, answer, following]), ANSWER).partition(NEXT)
    except RenderError:  # a template for one exchange only
        between = ""
    asked = renderer.text([{"role": "user", "content": NEXT}])
    prompted = renderer.text([{"role": "user", "content": NEXT}], generation=True)
    generation = prompted.removeprefix(_shared(asked, prompted))
    last, middle = _ends(final, between, _after(prompted, NEXT), _opener(asked, renderer.tokenizer, specials), specials)
    headers: tuple[str, ...] = ()
    if not last.strip() and not middle.strip() and (leading := _leading(between, specials)):
        last = middle = ""
        headers = _openers(renderer, leading[0][0], specials)
    openings = {"user": _opening(renderer, [{"role": "user", "content": NEXT}], specials)}
    told = [
        QUESTION,
        call_of({"place": WORD}),
        {"role": "tool", "content": NEXT, "name": "look", "tool_call_id": CALL_ID},
    ]
    openings["tool"] = _opening(renderer, told, specials)
    header = next(
        (openings["user"][k:] for k in range(len(openings["user"])) if generation.startswith(openings["user"][k:])), ""
    )
    call, call_tail = _call_end(renderer, (last, middle), specials)
    return Endings(specials, last, middle, call, call_tail, openings, header, headers, between[len(middle) :])


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens of a tokenizer as texts, longest first."""
    found = {str(t) for t in tokenizer.all_special_tokens} | {
        str(t) for t in tokenizer.added_tokens_decoder.values() if getattr(t, "special", False)
    }
    return tuple(sorted((t for t in found if t), key=lambda t: (-len(t), t)))


def _shared(one: str, other: str) -> str:
    """What both texts begin with."""
    length = next((k for k, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return one[:length]


def _after(text: str, word: str) -> str:
    return text.partition(word)[2]


def _leading(text: str, specials: Sequence[str]) -> list[tuple[str, int]]:
    """The special tokens that ``text`` begins with, white space between them allowed, each with where it ends."""
    found: list[tuple[str, int]] = []
    at = 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip())
        token = next((s for s in specials if text.startswith(s, at)), None)
        if token is None:
            return found
        at += len(token)
        found.append((token, at))


def _opener(asked: str, tokenizer: Any, specials: Sequence[str]) -> str:
    """The special token that opens turns: the first one of a question, but for a BOS that stands there once."""
    found = sorted((asked.find(s), s) for s in specials if s in asked.partition(NEXT)[0])
    if found and found[0][1] == tokenizer.bos_token and asked.count(found[0][1]) == 1:
        found = found[1:]
    return found[0][1] if found else ""


def _ends(final: str, between: str, question_end: str, opener: str, specials: Sequence[str]) -> tuple[str, str]:
    at_last, in_middle = _leading(final, specials), _leading(between, specials)
    common = 0
    while (
        common < min(len(at_last), len(in_middle))
        and at_last[common][0] == in_middle[common][0]
        and (common == 0 or at_last[common][0] != opener)  # templates that always write a generation prompt
    ):
        common += 1
    if common:
        return final[: at_last[common - 1][1]], between[: in_middle[common - 1][1]]
    if at_last:
        # Only an end that closes questions too is taken for one; else it is the header of the next turn.
        closes = bool(in_middle) and any(in_middle[0][0] == token for token, _ in _leading(question_end, specials))
        return final[: at_last[0][1]], between[: in_middle[0][1]] if closes else ""
    plain = final.rstrip() or final
    if between.startswith(plain):  # plain letters, a token that the tokenizer lacks, or a mere line end
        return plain, plain
    return plain, ""


def _opening(renderer: TextRenderer, before: list[dict[str, Any]], specials: Sequence[str]) -> str:
    """What stands between the last words of ``before`` and an answer: what a prompt has in common with answers that are
    written already, last, in the middle, and thought about. Thinking that only some of them begin with is not in it."""
    answer = {"role": "assistant", "content": ANSWER}
    texts = []
    for turns in ([answer], [answer, QUESTION], [{**answer, "reasoning_content": f"{WORD}c"}]):
        try:
            literal, found, _ = _after(renderer.text([*before, *turns]), NEXT).partition(WORD)
        except RenderError:
            continue
        texts += [literal] if found else []
    try:
        opening = _after(renderer.text(before, generation=True), NEXT)
    except RenderError:
        return ""
    for text in texts:
        opening = opening[: _boundary(opening, text, specials)]
    return opening.rpartition(CALL_ID)[2] if texts else ""  # a result may be followed by the id of its call


def _boundary(one: str, other: str, specials: Sequence[str]) -> int:
    """Length of what both texts begin with, to the end of a line or special token unless one of them ends there."""
    length = len(_shared(one, other))
    if length in (len(one), len(other)):
        return length
    ends = [one.rfind("\n", 0, length) + 1]
    ends += [one.rfind(s, 0, length) + len(s) for s in specials if s in one[:length]]
    return max(ends)


def _openers(renderer: TextRenderer, first: str, specials: Sequence[str]) -> tuple[str, ...]:
    """``first``, and the special token that begins the result of a tool, which ends a calling turn."""
    try:
        text = renderer.text([QUESTION, call_of({"place": ANSWER}), {"role": "tool", "content": NEXT}])
        alone = renderer.text([QUESTION, call_of({"place": ANSWER})])
    except RenderError:
        return (first,)
    opened = _leading(text[len(_shared(text, alone)) :], specials)
    return tuple(dict.fromkeys([first, *(token for token, _ in opened[:1])]))


def _call_end(renderer: TextRenderer, ends: Sequence[str], specials: Sequence[str]) -> tuple[str, str]:
    tail = ""
    for tools in ([tool_named("look")], []):  # some write calls only where tools are, some know calls but no tools
        try:
            tail = tail or _after(renderer.text([QUESTION, call_of({"place": ANSWER})], tools=tools), ANSWER)
        except RenderError:
            continue
    for end in ends:
        if end and end.strip() in tail:
            return end.strip(), tail
    places = [(tail.rfind(s) + len(s), s) for s in specials if s in tail]
    return max(places)[1] if places else "", tail
