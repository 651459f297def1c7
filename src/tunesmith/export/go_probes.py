"""Conversations that a model's own template and an Ollama template are compared with, and the model's template as they ask for it.

``PROBES`` are plain text. ``TOOL_PROBES`` and ``THINKING_PROBES`` are asked only of templates that claim to handle tools and
thinking. Their definitions and arguments are written as transformers' ``get_json_schema`` writes them, names in alphabetical order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config.errors import RenderError

Tools = Sequence[Mapping[str, Any]]
FullRender = Callable[[list[dict[str, Any]], Tools, bool | None], str]
"""The prompt for (messages, tools, think); ``think`` None: not said. It may raise for a conversation it refuses."""
SWITCHES = ("enable_thinking", "thinking")
"""Variables by which chat templates turn thinking on and off."""
MARK = "qqSYSTEMqq"


@dataclass(frozen=True)
class ModelTemplate:
    """The model's own template: how it renders prompts, whether it knows tools and thinking, and thinking in ``<think>`` tags."""

    render: FullRender
    tools: bool = False
    thinking: bool = False
    tagged: bool = False


@dataclass(frozen=True)
class Probe:
    """One conversation to compare. When ``limit`` is not empty, a difference is no refusal but that limit."""

    name: str
    messages: tuple[dict[str, Any], ...]
    limit: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    think: bool | None = None
    needs_tools: bool = False


def model_template(renderer: Any) -> ModelTemplate:
    """What a `render.conversation.Renderer` renders prompts with.

    Thinking is known to a template that reads it apart from the words, begins prompts with it, or has a switch for it.
    """
    switch = next((name for name in SWITCHES if name in _variables(str(renderer.template))), None)
    other = {}
    for value in (True, False):
        other[value] = copy.copy(renderer)
        if switch is not None and switch not in renderer.template_args:
            other[value].template_args = {**renderer.template_args, switch: value}

    def render(messages: list[dict[str, Any]], tools: Tools, think: bool | None) -> str:
        asked = renderer if think is None else other[think]
        return str(asked.text(messages, generation=True, tools=tools))

    traits = renderer.traits
    tagged = "<think>" in renderer.template or "</think>" in renderer.template
    thinks = switch is not None or traits.thinking_key != "content"
    try:
        prompt = render([{"role": "user", "content": "Hi"}], (), True)
    except RenderError:
        prompt = ""
    if traits.thinking_key is None:  # it takes thinking away: it knows of it, or it refused the probe
        thinks = tagged or switch is not None
    thinks = (thinks or "<think>" in prompt) and not prompt.rstrip().endswith("</think>")  # turned off for good
    return ModelTemplate(render, traits.tools and traits.arguments is not None, thinks, tagged)


def _variables(text: str) -> set[str]:
    import jinja2
    from jinja2.meta import find_undeclared_variables

    plain = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    plain = plain.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(plain)
    except jinja2.TemplateSyntaxError:
        return set()
    found: set[str] = find_undeclared_variables(tree)
    return found


# --- plain text --------------------------------------------------------------------------------------------------


def _talk(*texts: str, system: str | None = None) -> tuple[dict[str, Any], ...]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return (*([] if system is None else [{"role": "system", "content": system}]), *turns)


_TRIMS = "the model's own chat template trims white space around messages; Ollama keeps it"
_EMPTY = "the model's own chat template treats an empty system prompt otherwise than Ollama"
_THINKS = "the model's own chat template takes earlier thinking (<think> …) out of the conversation; Ollama keeps it"
_NOTHING = "the model's own chat template writes an empty message otherwise than Ollama"
PROBES = (
    Probe("user", _talk("Hi")),
    Probe("system", _talk("Hi", system="Be brief.")),
    Probe("marked system", _talk("Hi", system=MARK)),
    Probe("three turns", _talk("Hi", "Hello! How can I help?", "Tell me a joke.")),
    Probe("system and three turns", _talk("Hi", "Hello!", "And now?", system="You are a pirate.")),
    Probe("seven turns", _talk("1?", "1.", "2?", "2.", "3?", "3.", "4?", system="Count.")),
    Probe("seven turns without system", _talk("1?", "1.", "2?", "2.", "3?", "3.", "4?")),
    Probe("Chinese", _talk("你好，请介绍一下你自己。", "你好！我是助手。", "谢谢。", system="你是一个有用的助手。")),
    Probe("emoji and accents", _talk("Ünïcödé 👩‍👩‍👧 \u00a0 שלום ｆｕｌｌ", "naïve café ☕", "e\u0301?")),
    Probe("code", _talk("```python\ndef f(x):\n\treturn {'a': [x]}\n```\nWhat is it?", "`f(1)`\n\n- a\n- b", "ok")),
    Probe("template marks", _talk("{{ .Prompt }} {% if x %} {{- y -}} ${z} %s %d", "{{", "}}", system="{{ .System }}")),
    Probe("quotes and backslashes", _talk('"a" \'b\' `c` \\n \\\\ <b>&amp;</b> """', "\\", "'")),
    Probe("line breaks inside", _talk("one\ntwo\n\n\nfive\r\nsix\tseven", "a\nb", "c", system="x\n\ny")),
    Probe("empty answer", _talk("Say nothing.", "", "Thanks."), limit=_NOTHING),
    Probe("empty question", _talk(""), limit=_NOTHING),
    Probe("spaces around", _talk("  Hi \n", " Hello\n\n", "\tagain "), limit=_TRIMS),
    Probe("spaces around system", _talk("Hi", system=" Be brief.\n"), limit=_TRIMS),
    Probe("empty system", _talk("Hi", system=""), limit=_EMPTY),
    Probe("thinking", _talk("2+2?", "<think>\nHm.\n</think>\n\n4", "And 3+3?"), limit=_THINKS),
)


# --- tools -------------------------------------------------------------------------------------------------------


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    parameters |= {"required": required} if required else {}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _call(*calls: tuple[str, str, dict[str, Any]], content: str = "", thinking: str = "") -> dict[str, Any]:
    made = [{"type": "function", "id": i, "function": {"name": name, "arguments": given}} for i, name, given in calls]
    said: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": made}
    return said | ({"reasoning_content": thinking} if thinking else {})


def _result(identity: str, name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "name": name, "tool_call_id": identity, "content": content}


_CITY = {"type": "string", "description": "The city's name"}
_WEATHER = _tool("get_weather", "Weather of today", {"city": _CITY}, ["city"])
_TIME = _tool(
    "get_time",
    "The time at a place: 'now' or <later> & more",
    {
        "city": {"type": "string", "description": 'A "city", 例如 北京'},
        "days": {"type": "integer", "description": "Days from now"},
        "unit": {"type": "string", "enum": ["h", "min"], "description": "Unit"},
    },
    ["city", "days"],
)
_ALONE = _tool("ping", "Answers", {}, [])
_LIST = _tool("add", "Adds up", {"of": {"type": "array", "items": {"type": "number"}, "description": "What"}}, ["of"])
_NESTED = _tool(
    "move",
    "Moves",
    {"to": {"type": "object", "properties": {"x": {"type": "number"}}, "description": "Where"}},
    ["to"],
)
_MORE = _tool("open", "Opens", {"at": {"type": "integer", "description": "When", "default": 1, "minimum": 0}}, [])
_UNSORTED = _tool("send", "Sends", {"to": _CITY, "by": _CITY}, ["to"])
_ONE = ("abcdef123", "get_weather", {"city": "Zürich"})
_TWO = ("bcdefg234", "get_time", {"city": "北京", "days": 2})
_USER, _AGAIN = _talk("Weather?")[0], {"role": "user", "content": "And now?"}
_SUNNY = _result("abcdef123", "get_weather", '{"degrees": 3, "sky": "klar"}')
_NOON = _result("bcdefg234", "get_time", "12:00")
_SYSTEM = {"role": "system", "content": "Be brief."}
_ANSWER = {"role": "assistant", "content": "3 degrees."}
_CODE = (
    "cdefgh345",
    "run",
    {"code": "if a < b && c > d:\n\tprint(\"é\", 'x\\n')", "deep": {"list": [1, 2.5, None, True]}},
)
_SHELL = _tool("run", "Runs code", {"code": _CITY, "deep": _CITY}, ["code"])

_KEYS = "Ollama hands over the arguments of earlier tool calls, and the parameters of tools, in alphabetical order, not as they were given"
_DROPS = "of a tool's parameters Ollama keeps type, description, enum and items; others (default, minimum, …) do not reach the model"
_NESTS = (
    "parameters of tools with properties or lists inside are written otherwise than by the model's own chat template"
)
_IDS = "the model was taught ids of tool calls in a form of its own; the server passes on those the client sends"
_SIGNS = "in the arguments of tool calls, Ollama's template writes signs that cannot be seen (joiners, no-break spaces) as \\u codes"
TOOL_PROBES = tuple(
    Probe(name, messages, limit, tools, needs_tools=True)
    for name, messages, tools, limit in (
        ("a tool", (_USER,), (_WEATHER,), ""),
        ("two tools and a system prompt", (_SYSTEM, _USER), (_WEATHER, _TIME), ""),
        ("a tool without parameters", (_USER,), (_ALONE, _WEATHER), ""),
        ("a tool, none called", (_SYSTEM, _USER, _ANSWER, _AGAIN), (_WEATHER,), ""),
        ("a call and its result", (_USER, _call(_ONE), _SUNNY), (_WEATHER,), ""),
        ("a call, an answer, a question", (_USER, _call(_ONE), _SUNNY, _ANSWER, _AGAIN), (_WEATHER, _TIME), ""),
        ("system and a call", (_SYSTEM, _USER, _call(_ONE), _SUNNY), (_WEATHER,), ""),
        ("two calls in one turn", (_USER, _call(_ONE, _TWO), _SUNNY, _NOON), (_WEATHER, _TIME), ""),
        ("a call after a call", (_USER, _call(_ONE), _SUNNY, _call(_TWO), _NOON), (_WEATHER, _TIME), ""),
        ("numbers as results", (_USER, _call(_ONE), _result(_ONE[0], _ONE[1], "-7"), _call(_TWO), _result(_TWO[0], _TWO[1], "3.50")), (_WEATHER, _TIME), ""),
        ("words and a call", (_USER, _call(_ONE, content="I look."), _SUNNY), (_WEATHER,), ""),
        ("code in a call", (_USER, _call(_CODE), _result("cdefgh345", "run", "a < b & c\n\"x\"")), (_SHELL,), ""),
        ("a list as a parameter", (_USER,), (_LIST,), _NESTS),
        ("parameters inside a parameter", (_USER,), (_NESTED,), _NESTS),
        ("a parameter with a default", (_USER,), (_MORE,), _DROPS),
        ("parameters in another order", (_USER,), (_UNSORTED,), _KEYS),
        ("arguments in another order", (_USER, _call(("abcdef123", "send", {"to": "A", "by": "B"})), _SUNNY), (_UNSORTED,), _KEYS),
        ("ids of other clients", (_USER, _call(("call_1", "get_weather", {"city": "A"})), _result("call_1", "get_weather", "x")), (_WEATHER,), _IDS),
        ("signs that cannot be seen", (_USER, _call(("abcdef123", "get_weather", {"city": "a\u00a0b👩‍👧"})), _SUNNY), (_WEATHER,), _SIGNS),
    )
)  # fmt: skip


# --- thinking ----------------------------------------------------------------------------------------------------


def _thought(content: str, thinking: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": thinking}


_PAST = (*_talk("2+2?"), _thought("4", "Two and two."), _AGAIN)
_LONG = (_SYSTEM, *_PAST, _thought("Still 4", "The same.\n\nYes."), _USER)
_CALLED = (_USER, _call(_ONE, thinking="I look it up."), _SUNNY)
_SPEAKING = (_USER, _call(_ONE, content="I look.", thinking="Where?"), _SUNNY, _call(_TWO, thinking="When?"), _NOON)
_AFTER = (*_CALLED, _thought("3 degrees.", "Cold."), _AGAIN)


def _think(name: str, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[Probe]:
    how = {"": None, ", told to think": True, ", told not to think": False}
    given = tuple(messages), "", tuple(tools)
    return [Probe(name + said, *given, think=think, needs_tools=bool(tools)) for said, think in how.items()]


THINKING_PROBES = (
    *_think("a question", _talk("Hi")),
    *_think("a system prompt", (_SYSTEM, _USER)),
    *_think("an earlier thought", _PAST),
    *_think("earlier thoughts", _LONG),
    *_think("an earlier answer without a thought", _talk("1?", "1.", "2?")),
    *_think("a thought and a call", _CALLED, [_WEATHER]),
    *_think("thoughts, words and calls", _SPEAKING, [_WEATHER, _TIME]),
    *_think("a thought before the last question", _AFTER, [_WEATHER]),
)
PROBE = {probe.name: probe for probe in (*PROBES, *TOOL_PROBES, *THINKING_PROBES)}
