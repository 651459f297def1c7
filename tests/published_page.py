"""docs/verified-families.md: which chat templates are verified and what each can show, told by the templates themselves.

``PYTHONPATH=src python tests/published_page.py`` writes the page; a test keeps it equal to what is told here.
"""

from __future__ import annotations

from pathlib import Path

from published import Published, templates
from published_cases import cases, thought_marks
from published_forms import best

PAGE = Path(__file__).parents[1] / "docs" / "verified-families.md"
# They judge a conversation, and their own answer is a verdict after it: no assistant turn of a row is where it is learned.
JUDGES = {"ollama/llama-guard3:1b", "ollama/llama-guard3:8b", "ollama/granite3-guardian:2b", "ollama/shieldgemma:27b"}
UNVERIFIED = (
    "Baichuan", "ChatGLM 2/3", "ERNIE 4.5", "Falcon 3", "Hunyuan", "InternLM 3", "Kimi K2", "MiniCPM", "MiniMax", "Phi-1.5 and 2",
    "Seed-OSS", "SmolLM3", "TeleChat", "XVERSE",
)  # fmt: skip

HEAD = """# Verified chat templates

Each template below is one that a model is published with, read from a package of other people when the tests run: `trl` (its
`chat_templates/*.jinja`), the npm package `@huggingface/ollama-utils` (`ollama/…`: the templates inside the GGUFs of Ollama's library) and
`mistral-common` (Mistral's own generator). For each, {count} conversations are rendered: token ids equal `apply_chat_template`'s, and
what is learned equals what rules written by hand say (`tests/published_spans.py`), or the row is refused with its reason. The rules
agree with the `{{% generation %}}` marks of trl's training templates; Mistral's text agrees with what mistral-common's tokenizers encode.

The tokenizers are small stand-ins with the real special tokens: what is verified is the template, the mask, BOS and the stop tokens.

* **system**: `turn` = the template writes it; `joined` = it has none, so the system text is put before the first question.
* **calls**: tool calls and results. `several` = more than one call in a turn; `one` = the template takes one at a time; `no` = it has
  no place for tools, rows with tools are refused.
* **words with a call**: an assistant turn with both; `no` = the template leaves the words out or moves them, such rows are refused.
* **thinking**: `every turn` / `last turn` = which turns show it, in the template's own form; `text` = the template knows no thinking, so it
  stands as `<think>…</think>` before the answer; `dropped` = the template cuts it off: not learned, and counted.

| template | family | end of turn | system | calls | words with a call | thinking |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole page. Takes some seconds: every template renders every kind of conversation."""
    rows = [_row(template) for template in templates() if template.name not in JUDGES]
    judges = ", ".join(f"`{name}`" for name in sorted(JUDGES))
    tail = f"""
Not among them, because they judge conversations and do not hold them: {judges}.

## Unverified

For these families no installed package publishes the template: {", ".join(UNVERIFIED)}. They go through the same
code, which checks every row (ids, start and end of each answer, words left out) and refuses what it cannot tell exactly.
"""
    return HEAD.format(count=len(cases())) + "\n".join(rows) + "\n" + tail


def _row(template: Published) -> str:
    end = f"`{template.tokens.end}`".replace("|", "\\|") if template.tokens.end else "none"
    cells = (
        f"`{template.name}`",
        template.family,
        end,
        _system(template),
        _calls(template),
        _words(template),
        _thinking(template),
    )
    return f"| {' | '.join(cells)} |"


def _found(template: Published, name: str) -> tuple[str, str, bool] | None:
    """Form of thinking, text and whether the system turn was joined; None when no form shows every word."""
    case = next(case for case in cases(template.tokens.end) if case.name == name)
    found = best(template, case)
    return None if isinstance(found, str) else (found[0].thinking, found[1], found[0].joined_system)


def _system(template: Published) -> str:
    found = _found(template, "system")
    return "no" if found is None else "joined" if found[2] else "turn"


def _calls(template: Published) -> str:
    if _found(template, "a tool call") is None:
        return "no"
    return "several" if _found(template, "two calls in one turn") else "one"


def _words(template: Published) -> str:
    if _found(template, "a tool call") is None:
        return "–"
    return "yes" if _found(template, "words and a tool call") else "no"


def _thinking(template: Published) -> str:
    name = "thinking, two exchanges"
    found = _found(template, name)
    if found is None:
        return "–"
    form, text, _ = found
    case = next(case for case in cases(template.tokens.end) if case.name == name)
    first, last = (all(mark in text for mark in thought_marks(m)) for m in case.chat.messages if m.role == "assistant")
    if form == "left out" or not last:
        return "dropped"
    return "text" if form == "content" else "every turn" if first else "last turn"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
