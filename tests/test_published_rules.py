"""The rules by which published templates are judged, judged themselves: by trl's ``{% generation %}`` twins, by the stop texts of
Ollama's library, and Mistral's text by mistral-common's tokenizers. Nothing of Tunesmith's rendering is used here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from published import Published, by_name, missing, templates, tokenizer_for
from published_cases import cases, thought_marks
from published_forms import best, render
from published_page import PAGE, page
from published_spans import FAMILY_RULES, expected_turns


def published() -> list[Any]:
    return [pytest.param(template, id=template.name) for template in templates()]


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
MISTRAL_CASES = (
    "one exchange",
    "three exchanges",
    "system",
    "unicode",
    "lines and indents",
    "a tool call",
    "two calls in one turn",
)


@pytest.mark.parametrize("version", MISTRAL_FILES)
def test_mistral_text_is_what_mistral_common_encodes(version: str) -> None:
    if "mistral-common" in missing():
        pytest.skip(missing()["mistral-common"])
    import mistral_common
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    file = Path(mistral_common.__file__).parent / "data" / MISTRAL_FILES[version]
    tokenizer = MistralTokenizer.from_file(str(file), mode=ValidationMode.finetuning)
    template = by_name(f"mistral-common/{version}")
    compared = 0
    for case in cases():
        found = best(template, case)
        if isinstance(found, str) or case.name not in MISTRAL_CASES:
            continue
        request: Any = ChatCompletionRequest(messages=found[0].messages(case), tools=list(case.chat.tools) or None)
        theirs = tokenizer.encode_chat_completion(request).text or ""
        assert squeezed(found[1]) == squeezed(theirs), case.name
        compared += 1
    assert compared >= 5


def squeezed(text: str) -> str:
    """SentencePiece shows a space as "▁" and bytes as "<0x0A>"."""
    return re.sub(r"(?:<0x[0-9A-F]{2}>)+", lambda m: bytes.fromhex(re.sub(r"<0x|>", "", m[0])).decode(), text).replace(
        "▁", " "
    )


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_of_verified_families_is_right() -> None:
    if missing():
        pytest.skip("; ".join(missing().values()))
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "write it again with: PYTHONPATH=src python tests/published_page.py"
    )


def test_thoughts_are_told_apart_from_words() -> None:
    """The cases with thinking have words that only the thought holds (else `lost_words` could not tell it from an answer)."""
    thinking = [case for case in cases() if case.name.startswith("thinking")]
    assert thinking and all(any(thought_marks(m) for m in case.chat.messages) for case in thinking)
