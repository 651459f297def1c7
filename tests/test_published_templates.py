"""Our rendering against the templates that models are published with: 145 templates, each with every conversation of published_cases.

A template that raises must make us refuse; a template that leaves out or moves words must make us refuse; for every other
pair the ids must be those of ``apply_chat_template`` and the learned characters those that the hand-written rules
(published_spans) tell. Those rules are themselves compared with trl's own ``{% generation %}`` twins, and Mistral's text
with mistral-common's tokenizers. What could not be had here is skipped with its reason (``published.missing``).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import published_page
import pytest
from published import Published, by_name, missing, templates, tokenizer_for
from published_cases import Case, cases, thought_marks
from published_forms import Form, best, render
from published_spans import FAMILY_RULES, Turn, expected_turns

from tunesmith.config.errors import RenderError
from tunesmith.render.conversation import Rendered, Renderer
from tunesmith.render.stop import stop_token_ids

SOURCES = ("trl", "ollama-utils", "mistral-common")
# They judge a conversation, and their own answer is a verdict after it: no assistant turn of a row is where it is learned.
JUDGES = {"ollama/llama-guard3:1b", "ollama/llama-guard3:8b", "ollama/granite3-guardian:2b", "ollama/shieldgemma:27b"}
# What we refuse though template and rules would allow it: (names, cases, words of our message) and why.
REFUSED: tuple[tuple[str, str, str], ...] = ()


def published(*, without: set[str] = frozenset()) -> list[Any]:  # type: ignore[assignment]
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
    expected_refusal = next((r for names, name, r in REFUSED if re.fullmatch(names, template.name) and name == case.name), None)
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
    ended = not template.tokens.end or learned.rstrip().endswith(template.tokens.end) or not rendered.text.rstrip().endswith(template.tokens.end)
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
    tokenizer, family = tokenizer_for(template), template.tokens
    stops = tokenizer.convert_ids_to_tokens(list(stop_token_ids(renderer_for(template))))
    assert family.eos in stops
    if family.end and template.name != "ollama/qwen:0.5b":  # its last turn has no end in the text
        assert stops[0] == family.end
    assert set(stops) <= {family.end, family.eos, *family.more}


# --- the rules themselves ----------------------------------------------------------------------------------------


def test_every_family_has_a_rule_and_an_end() -> None:
    for template in templates():
        rule = FAMILY_RULES[template.family]
        assert not template.tokens.end or re.search(rule.ends, template.tokens.end), template.name


# What trl's twins learn more than we do: white space after the end, phi's eos after it, and a header (gpt-oss, DeepSeek).
TRL_MORE = re.compile(r"\s*(?:<\|endoftext\|>)?|<\|start\|>assistant|<｜Assistant｜>|<｜tool▁outputs▁end｜>")


@pytest.mark.parametrize("template", [p for p in published() if p.values[0].training])
def test_the_rules_agree_with_the_twins_of_trl(template: Published) -> None:
    """Where trl's ``{% generation %}`` twin renders the same text, it learns what our rules say (and what is in TRL_MORE)."""
    compared = 0
    for case in cases(template.tokens.end):
        found = best(template, case)
        if isinstance(found, str) or case.name == "two answers in a row":
            continue
        form, text = found
        twin = {"chat_template": template.training}
        if render(template, case, form, **twin) != text:
            continue
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        marked = render(template, case, form, **how, **twin)
        offsets = tokenizer_for(template)(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        theirs = {i for (a, b), learned in zip(offsets, marked["assistant_masks"]) if learned for i in range(a, b)}
        try:
            turns = expected_turns(template, case, text)
        except LookupError:
            continue
        sure = {i for turn in turns for i in range(turn.sure, turn.end)}
        ours_at_most = {i for turn in turns for i in range(turn.start, turn.far)}
        more = "".join(text[i] if i in theirs - ours_at_most else "\0" for i in range(len(text)))
        assert sure <= theirs, f"{case.name}: trl does not learn {''.join(text[i] for i in sorted(sure - theirs))!r}"
        assert [run for run in more.split("\0") if not TRL_MORE.fullmatch(run)] == [], case.name
        compared += 1
    assert compared or template.name in NO_SAME_TEXT


NO_SAME_TEXT = {
    "trl/glm4moe": "its twin ends every turn with a role token",
}


@pytest.mark.parametrize("template", [p for p in published() if p.values[0].stop])
def test_ollama_stops_at_the_same_end(template: Published) -> None:
    """Ollama's stop texts of the same model name the family's end of turn, unless that is eos, where Ollama stops anyway."""
    family = template.tokens
    if template.name == "ollama/dolphin-llama3:8b":
        pytest.skip("Ollama's library has another build of it, which speaks ChatML")
    assert family.end in {"", family.eos, *template.stop}


# --- Mistral's own tokenizers ------------------------------------------------------------------------------------

MISTRAL_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v3-tekken": "tekken_240718.json",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
MISTRAL_CASES = ("one exchange", "three exchanges", "system", "unicode", "lines and indents", "a tool call", "two calls in one turn")


@pytest.mark.parametrize("version", MISTRAL_FILES)
def test_mistral_text_is_what_mistral_common_encodes(version: str) -> None:
    if "mistral-common" in missing():
        pytest.skip(missing()["mistral-common"])
    import mistral_common
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    file = Path(mistral_common.__file__).parent / "data" / MISTRAL_FILES[version]
    tokenizer = MistralTokenizer.from_file(str(file), mode="finetuning")
    template = by_name(f"mistral-common/{version}")
    compared = 0
    for case in cases():
        found = best(template, case)
        if isinstance(found, str) or case.name not in MISTRAL_CASES:
            continue
        request = ChatCompletionRequest(messages=found[0].messages(case), tools=list(case.chat.tools) or None)
        theirs = tokenizer.encode_chat_completion(request).text or ""
        assert squeezed(found[1]) == squeezed(theirs), case.name
        compared += 1
    assert compared >= 5


def squeezed(text: str) -> str:
    """SentencePiece shows a space as "▁" and bytes as "<0x0A>"."""
    return re.sub(r"(?:<0x[0-9A-F]{2}>)+", lambda m: bytes.fromhex(re.sub(r"<0x|>", "", m[0])).decode(), text).replace("▁", " ")


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_of_verified_families_is_right() -> None:
    if missing():
        pytest.skip("; ".join(missing().values()))
    page = Path(__file__).parents[1] / "docs" / "verified-families.md"
    assert page.read_text(encoding="utf-8") == published_page.page(), "write it again with: python tests/published_page.py"


def test_thoughts_are_told_apart_from_words() -> None:
    """The cases with thinking have words that only the thought holds (else `lost_words` could not tell it from an answer)."""
    thinking = [case for case in cases() if case.name.startswith("thinking")]
    assert thinking and all(any(thought_marks(m) for m in case.chat.messages) for case in thinking)
