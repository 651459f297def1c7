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
from published_cases import Case, cases
from published_forms import Form, best, render
from published_page import JUDGES
from published_spans import Turn, expected_turns
from tunesmith.config.errors import RenderError
from tunesmith.render.conversation import Rendered, Renderer
from tunesmith.render.stop import stop_token_ids

SOURCES = ("trl", "ollama-utils", "mistral-common")
# What we refuse though template and rules would allow it: (names, cases, words of our message) and why.
REFUSED: tuple[tuple[str, str, str], ...] = ()


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
        return _must_refuse(case, rendered, found)
    form, text = found
    if case.name == "two answers in a row":
        return _problem_of_joined(template, case, rendered)
    try:
        turns = expected_turns(template, case, text)
    except LookupError as error:
        return _must_refuse(case, rendered, str(error))
    expected_refusal = next(
        (r for names, name, r in REFUSED if re.fullmatch(names, template.name) and name == case.name), None
    )
    if expected_refusal is not None:
        return _must_refuse(case, rendered, "it is in the list of refusals", expected_refusal)
    if isinstance(rendered, RenderError):
        return f"{case.name}: refused: {rendered}"
    if rendered.text != text or list(rendered.ids) != ids(template, case, form):
        return f"{case.name}: text or ids differ from apply_chat_template's"
    return _problem_of_mask(template, case, rendered, turns)


def _must_refuse(case: Case, rendered: Rendered | RenderError, why: str, words: str = "") -> str | None:
    if not isinstance(rendered, RenderError):
        return f"{case.name}: rendered, though {why}"
    return None if re.search(words, str(rendered)) else f"{case.name}: the refusal does not say {words!r}: {rendered}"


def _problem_of_mask(template: Published, case: Case, rendered: Rendered, turns: list[Turn]) -> str | None:
    encoded = tokenizer_for(template)(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    for (a, b), learned in zip(encoded["offset_mapping"], rendered.mask):
        sure = any(turn.sure <= a < turn.end and b > a for turn in turns)
        maybe = any(turn.start <= a < turn.far and b > a for turn in turns)
        if learned < sure or learned > maybe:
            expected = [rendered.text[turn.start : turn.end] for turn in turns]
            return f"{case.name}: expected {expected}, learned {learned_texts(rendered)}"
    return None


def _problem_of_joined(template: Published, case: Case, rendered: Rendered | RenderError) -> str | None:
    """Two answers in a row: templates join them, or open the second turn or not; their words at least are learned, and an end."""
    if isinstance(rendered, RenderError):
        return None
    learned = "".join(learned_texts(rendered))
    roles = [message.role for message in case.chat.messages]
    right = all((mark in learned) == (role == "assistant") for role, marks in zip(roles, case.marks) for mark in marks)
    ended = (
        not template.tokens.end
        or learned.rstrip().endswith(template.tokens.end)
        or not rendered.text.rstrip().endswith(template.tokens.end)
    )
    return None if right and ended else f"{case.name}: learned {learned_texts(rendered)}"


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
