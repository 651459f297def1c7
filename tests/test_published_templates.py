"""Our rendering against the templates that models are published with: 145 templates, each with every conversation of published_cases.

A template that raises must make us refuse; a template that leaves out or moves words must make us refuse; for every other
pair the ids must be those of ``apply_chat_template`` and the learned characters those that the hand-written rules
(published_spans) tell; tests/test_published_rules.py proves those. What could not be had here is skipped with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import Any

import pytest

from published import Published, missing, templates, tokenizer_for
from published_cases import Case, cases, unique_words
from published_forms import Form, best, render
from published_page import JUDGES
from published_spans import Turn, expected_turns, lost_words
from tunesmith.config.errors import RenderError
from tunesmith.render.conversation import Rendered, Renderer
from tunesmith.render.stop import stop_token_ids

SOURCES = ("trl", "ollama-utils", "mistral-common")
# What a template does that leaves more than one right answer; the words of the assistant, and they alone, must be learned.
LOOSE: tuple[tuple[str, str, str], ...] = (
    (".*", "two answers in a row", "templates join them, or open the second turn or not"),
    ("trl/(gemma4|diffusion_gemma).*", "words and a tool call", "the words are moved behind the result of the tool"),
    ("trl/gemma4.*", "thinking and a tool call", "thinking without a place of its own is words, and moved like them"),
)


def published(without: Collection[str] = ()) -> list[Any]:
    return [pytest.param(p, id=p.name) for p in templates() if p.name not in without]


@pytest.mark.parametrize("source", SOURCES)
def test_the_source_is_there(source: str) -> None:
    if source in missing():
        pytest.skip(missing()[source])
    assert sum(p.source == source for p in templates()) >= {"trl": 40, "ollama-utils": 97, "mistral-common": 7}[source]


@pytest.mark.parametrize("template", published(without=JUDGES))
def test_every_conversation_is_rendered_exactly_or_refused(template: Published) -> None:
    assert [line for case in cases(template.tokens.end) if (line := problem(template, case))] == []


def problem(template: Published, case: Case) -> str | None:
    """What is wrong with our rendering of ``case``; None when nothing is."""
    rendered = ours(template, case)
    found = best(template, case)
    if isinstance(found, str):
        told = (
            isinstance(rendered, Rendered) and rendered.dropped_words > 0 and _only_words_beside_calls(case, rendered)
        )
        return None if told else _must_refuse(case, rendered, found)
    form, text = found
    loose = any(re.fullmatch(names, template.name) and name == case.name for names, name, _ in LOOSE)
    try:
        turns = [] if loose else expected_turns(template, case, text)
    except LookupError as error:
        return _must_refuse(case, rendered, str(error))
    if isinstance(rendered, RenderError):
        return None if loose else f"{case.name}: refused: {rendered}"
    if rendered.text != text or list(rendered.ids) != ids(template, case, form):
        return f"{case.name}: text or ids differ from apply_chat_template's"
    return _problem_of_words(template, case, rendered) if loose else _problem_of_mask(template, case, rendered, turns)


def _only_words_beside_calls(case: Case, rendered: Rendered) -> bool:
    """Is what the text leaves out no more than what a turn said beside its call? Then it is counted, not refused."""
    lost = {line.partition(": ")[2] for line in lost_words(case, rendered.text)}
    beside = {m for message in case.chat.messages if message.tool_calls for m in unique_words(message.content)}
    return bool(lost) and lost <= beside


def _must_refuse(case: Case, rendered: Rendered | RenderError, why: str) -> str | None:
    if isinstance(rendered, Rendered):
        return f"{case.name}: rendered, though {why}"
    said = rendered.message.removeprefix(f"{case.chat.origin}: ")
    return None if re.search(REASONS, said) else f"{case.name}: the refusal has no known reason: {said}"


# How a refusal begins; the words after it name the turn and the thing.
REASONS = (
    r"^the chat template (refuses|leaves out|does not (write|show))|^turn \d+ is empty|^cannot tell where turn \d+"
)


def _problem_of_mask(template: Published, case: Case, rendered: Rendered, turns: list[Turn]) -> str | None:
    encoded = tokenizer_for(template)(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    for (a, b), learned in zip(encoded["offset_mapping"], rendered.mask):
        sure = any(turn.sure <= a < turn.end and b > a for turn in turns)
        maybe = any(turn.start <= a < turn.far and b > a for turn in turns)
        if learned < sure or learned > maybe:
            expected = [rendered.text[turn.start : turn.end] for turn in turns]
            return f"{case.name}: expected {expected}, learned {learned_texts(rendered)}"
    return None


def _problem_of_words(template: Published, case: Case, rendered: Rendered) -> str | None:
    learned = "".join(learned_texts(rendered))
    for message, marks in zip(case.chat.messages, case.marks):
        if any((mark in learned) != (message.role == "assistant") for mark in marks):
            return f"{case.name}: learned {learned_texts(rendered)}"
    end = template.tokens.end
    ended = not end or learned.rstrip().endswith(end) or not rendered.text.rstrip().endswith(end)
    return None if ended else f"{case.name}: the end is not learned: {learned_texts(rendered)}"


@cache
def renderer_for(template: Published, adds_bos: bool | None = None) -> Renderer:
    return Renderer(tokenizer_for(template, adds_bos))


@cache
def ours(template: Published, case: Case) -> Rendered | RenderError:
    try:
        return renderer_for(template).render(case.chat)
    except RenderError as error:
        return error


def ids(template: Published, case: Case, form: Form) -> list[int]:
    return list(render(template, case, form, tokenize=True, return_dict=True)["input_ids"])


def learned_texts(rendered: Rendered) -> list[str]:
    """The text of each run of learned tokens."""
    runs: list[list[int]] = []
    for i, learned in enumerate(rendered.mask):
        if learned and i and rendered.mask[i - 1]:
            runs[-1][1] = rendered.offsets[i][1]
        elif learned:
            runs.append(list(rendered.offsets[i]))
    return [rendered.text[a:b] for a, b in runs]


# --- beginnings, ends and stops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [p for p in published(without=JUDGES) if p.values[0].tokens.bos])
def test_bos_stands_once_whatever_the_tokenizer_adds(template: Published) -> None:
    case = cases()[2]
    found = best(template, case)
    if isinstance(found, str):
        pytest.skip(found)
    adding, plain = (renderer_for(template, adds).render(case.chat) for adds in (True, False))
    bos = tokenizer_for(template).convert_tokens_to_ids(template.tokens.bos)
    assert adding.ids == plain.ids and adding.mask == plain.mask
    assert plain.ids.count(bos) == found[1].count(template.tokens.bos)


@pytest.mark.parametrize("template", published(without=JUDGES))
def test_stop_tokens_are_the_end_of_turn_and_eos(template: Published) -> None:
    if isinstance(reason := best(template, cases()[0]), str):
        pytest.skip(reason)
    tokenizer, family = tokenizer_for(template), template.tokens
    stops = tokenizer.convert_ids_to_tokens(list(stop_token_ids(renderer_for(template))))
    assert family.eos in stops
    if family.end and template.name != "ollama/qwen:0.5b":  # its last turn has no end in the text
        assert stops[0] == family.end
    assert set(stops) <= {family.end, family.eos, *family.more}
