"""Published chat templates beside the Ollama templates chosen for them: the choice, made-up conversations, and the page in docs/.

``python tests/go_published.py`` writes docs/ollama-templates.md's table. The conversations here are not the probes: words, shapes and
arguments are drawn at random, within what the page says Ollama cannot do (trim, keep another order than the alphabet's).
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from published import Published, templates, tokenizer_for
from tunesmith.export.go_template import Choice, ModelTemplate, choose, families, model_template
from tunesmith.render.conversation import Renderer

DATE = datetime.date(2024, 7, 26)
PAGE = Path(__file__).parents[1] / "docs" / "ollama-templates.md"
MARK = "<!-- The table below is written by tests/go_published.py. -->\n"
JUDGES = {"ollama/granite3-guardian:2b", "ollama/llama-guard3:1b", "ollama/llama-guard3:8b", "ollama/shieldgemma:27b"}
"""Templates that judge a conversation and hold none."""


@dataclass(frozen=True)
class Chosen:
    """A published template, how it renders, and what was chosen for it; ``bos``: what the server's tokenizer adds itself."""

    published: Published
    model: ModelTemplate
    bos: str
    choice: Choice

    def rendered(self, talk: Talk) -> str | None:
        """The prompt by the published template, as the server has to render it; None when it refuses."""
        try:
            return self.model.render([dict(m) for m in talk.messages], talk.tools, talk.think).removeprefix(self.bos)
        except Exception:  # Jinja raises whatever a template's raise_exception or a filter raises
            return None


@dataclass(frozen=True)
class Talk:
    """One conversation that ends where an answer begins."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    think: bool | None = None


@cache
def chosen(published: Published) -> Chosen:
    """What is chosen for a published template."""
    tokenizer = tokenizer_for(published)
    renderer = Renderer(tokenizer, date=DATE)
    bos = (tokenizer.bos_token or "") if published.tokens.adds_bos else ""
    model = model_template(renderer)
    return Chosen(
        published, model, bos, choose(lambda m, generation: renderer.text(m, generation=generation), bos, model)
    )


# --- conversations at random -------------------------------------------------------------------------------------

WORDS = (
    *["a", "Hello?", "你好，世界", "naïve", "🙂", "👩\u200d👩\u200d👧", "{{", ".X", "}}", "{%", "y", "%}", "{{-", "}}", "%s", "%d", "$1", "\\n", "\\\\", "'q'", "`c`", "<b>&amp;</b>", "<|x|>", "</s>", "[INST]", "###", "User:", "...", "–"],
    *["…", "1.", "3.5", "-7", "#tag", "@me", "a_b", "C++", "print(f'{x}')", "½", "Ω", "नमस्ते", "שלום", "ｆｕｌｌ"],
    '"q"', "if:\n\telse", "x\n\ny", "a\tb", "\u00a0x\u200bx",
)  # fmt: skip
SEEN = [word for word in WORDS if not set(word) & set("\u00a0\u200b\u200d")]
NAMES = ("get_weather", "add", "Look-up", "x", "run_code")
RESULTS = (
    *["-7", "42", "0", "3.5", "2.0", "-0.25", "12345678901234567890", "007", "1.50", "-0", "1e5", "12:00", "3 degrees", "-", "."],
    *["true", "null", "None", '{"degrees": 3, "sky": "klar"}', "[1, 2.5, null]", '"q"', "{}", "a\n1", "x"],
)  # fmt: skip
"""What tools answer: numbers and JSON, which some templates write otherwise than texts."""


def talks(number: int, seed: int, tools: bool, thinking: bool) -> Iterator[Talk]:
    """``number`` conversations; with tools or thinking in about half of them, where they are asked for."""
    dice = random.Random(seed)
    for _ in range(number):
        calls, thinks = tools and dice.random() < 0.6, thinking and dice.random() < 0.6
        offered = tuple(_tool(dice, name) for name in dice.sample(NAMES, dice.randint(1, 3))) if calls else ()
        think = dice.choice([None, None, True, False]) if thinking else None
        yield Talk(tuple(_messages(dice, offered, thinks)), offered, think)


def _messages(dice: random.Random, tools: tuple[dict[str, Any], ...], thinks: bool) -> Iterator[dict[str, Any]]:
    if dice.random() < 0.5:
        yield {"role": "system", "content": _text(dice)}
    for turn in range(dice.randint(1, 4)):
        if turn:
            yield _answer(dice, _text(dice), thinks)
        yield {"role": "user", "content": _text(dice)}
        if tools and dice.random() < 0.5:
            called = [_call(dice, tool) for tool in dice.sample(tools, dice.choice([1, 1, min(2, len(tools))]))]
            words = _text(dice) if dice.random() < 0.3 else ""
            yield {**_answer(dice, words, thinks), "tool_calls": called}
            for call in called:
                name = call["function"]["name"]
                yield {"role": "tool", "name": name, "tool_call_id": call["id"], "content": _result(dice)}


def _answer(dice: random.Random, content: str, thinks: bool) -> dict[str, Any]:
    thought = {"reasoning_content": _text(dice)} if thinks and dice.random() < 0.7 else {}
    return {"role": "assistant", "content": content, **thought}


def _text(dice: random.Random, words: list[str] | tuple[str, ...] = tuple(WORDS)) -> str:
    text = " ".join(dice.choice(words) for _ in range(dice.randint(1, 9))).strip()
    return text.strip("\u00a0\n\t ") or "x"


def _result(dice: random.Random) -> str:
    return dice.choice(RESULTS) if dice.random() < 0.5 else _text(dice, SEEN)


def _tool(dice: random.Random, name: str) -> dict[str, Any]:
    properties = {}
    for key in sorted(dice.sample(["a", "city", "Zeit", "x_y", "n"], dice.randint(0, 4))):
        kind = dice.choice(["string", "integer", "number", "boolean", "array"])
        choices = {"enum": dice.sample(["a", "<b>", "c d", "é"], 2)} if kind == "string" and dice.random() < 0.3 else {}
        inside = {"items": {"type": dice.choice(["string", "integer"])}} if kind == "array" else {}
        properties[key] = {"type": kind, **choices, **inside, "description": _text(dice, SEEN)}
    required = dice.sample(sorted(properties), dice.randint(0, len(properties)))
    parameters = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    described = {"name": name, "description": _text(dice, SEEN), "parameters": parameters}
    return {"type": "function", "function": described}


def _call(dice: random.Random, tool: dict[str, Any]) -> dict[str, Any]:
    names = sorted({*tool["function"]["parameters"]["properties"], "z"})
    arguments = {name: _value(dice, 2) for name in names}
    identity = "".join(dice.choice("abcdefgh123") for _ in range(9))
    return {"type": "function", "id": identity, "function": {"name": tool["function"]["name"], "arguments": arguments}}


def _value(dice: random.Random, deep: int) -> Any:
    kind = dice.randint(0, 7 if deep else 5)
    if kind == 6:
        return [_value(dice, deep - 1) for _ in range(dice.randint(0, 3))]
    if kind == 7:
        return {name: _value(dice, deep - 1) for name in sorted(dice.sample(["k", "é", "a b"], dice.randint(0, 3)))}
    return [_text(dice, SEEN), _text(dice, SEEN), dice.randint(-99999, 99999), dice.randint(-9, 9) + 0.5, True, None][
        kind
    ]


# --- the page ----------------------------------------------------------------------------------------------------


def page() -> str:
    """The whole page: its text as it is, and the table. Takes a minute: every published template is tried with every file."""
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    rows = [
        "| published template | Ollama template | claims | model's own has | conversations | differs in |",
        "|---|---|---|---|---|---|",
    ]
    found = [chosen(published) for published in templates() if published.name not in JUDGES]
    rows += [_row(each) for each in found]
    used = {each.choice.template.family for each in found if each.choice.template is not None}
    rows += [
        "",
        "Files for which no installed package publishes a template: "
        + ", ".join(f"`{f}`" for f in families() if f not in used)
        + ".",
    ]
    return head + MARK + "\n" + "\n".join(rows) + "\n"


SHORT = {
    "trims": "1", "empty system": "2", "empty message": "3", "earlier thinking": "4", "alphabetical": "5", "default, minimum": "6",
    "properties or lists inside": "7", "ids of tool calls": "8", "cannot be seen": "9", "refuses a system": "10", "leaves a system": "11",
}  # fmt: skip
"""A word of each limit, and its number in the page's list."""


def _row(each: Chosen) -> str:
    has = " ".join(name for name, does in (("tools", each.model.tools), ("thinking", each.model.thinking)) if does)
    template = each.choice.template
    if template is None:
        cells = [f"`{each.published.name}`", "none", "–", has or "–", "–", "–"]
    else:
        numbers = sorted((n for word, n in SHORT.items() if any(word in limit for limit in template.limits)), key=int)
        assert len(numbers) == len(template.limits), template.limits
        claims = " ".join(template.capabilities[1:]) or "–"
        name = "read off" if template.family == "derived" else f"`{template.family}`"
        cells = [f"`{each.published.name}`", name, claims, has or "–", str(template.compared), " ".join(numbers) or "–"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
