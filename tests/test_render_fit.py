"""Messages in the form that a template reads: thinking, tool calls, tools, system turns, dates, BOS, generation tags."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from render_tools import DATE, WEATHER, call, chat, dressed, learned_texts, renderer_of, told
from tunesmith.config.errors import RenderError
from tunesmith.data.example import Chat, Media, Message
from tunesmith.models.open import open_tokenizer
from tunesmith.render.batch import render_batch
from tunesmith.render.conversation import Renderer
from tunesmith.render.jinja_source import pinned_template

END = "<|im_end|>"
OPEN = "{{ '<|im_start|>' + m.role + '\n' }}"
CLOSE = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def chatml(body: str, before: str = "") -> str:
    """A template of our own in ChatML's form; ``body`` writes what a message ``m`` says."""
    return before + "{% for m in messages %}" + OPEN + body + CLOSE


SAYS = "{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' ' }}ARGS{{ '</call>' }}{% endfor %}"
TOOLS = "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
ASKED = Chat(
    (Message("user", "Rain?"), call(city="Oslo", days=2), told("dry"), Message("assistant", "No.")),
    (WEATHER,),
    origin="rows.json:7",
)


@pytest.fixture(scope="module")
def tokenizer(smol: Path) -> Any:
    return open_tokenizer(smol)


def thought(*thinking: str) -> Chat:
    turns = [(Message("user", f"q{i}"), Message("assistant", f"a{i}", thinking=t)) for i, t in enumerate(thinking)]
    return Chat(tuple(m for pair in turns for m in pair))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_goes_under_the_key_that_the_template_reads(tokenizer: Any, key: str) -> None:
    renderer = renderer_of(tokenizer, chatml("{% if m." + key + " %}{{ '[' + m." + key + " + ']' }}{% endif %}" + SAYS))
    assert learned_texts(renderer.render(thought("why"))) == [f"[why]a0{END}"]


def test_thinking_stays_in_the_content_where_no_key_is_read(tokenizer: Any) -> None:
    renderer = renderer_of(tokenizer, chatml(SAYS))
    assert renderer.traits.thinking_key == "content"
    assert learned_texts(renderer.render(thought("why"))) == [f"<think>\nwhy\n</think>\n\na0{END}"]


def test_thinking_that_is_cut_off_is_counted(tokenizer: Any) -> None:
    cutting = "{{ m.content.split('</think>')[-1] }}"
    rendered = renderer_of(tokenizer, chatml(cutting)).render(thought("one", "two"))
    assert learned_texts(rendered) == [f"a0{END}", f"a1{END}"] and rendered.dropped_thinking == 2


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("{{ c.function.arguments | tojson }}", '{"city": "Oslo", "days": 2}'),
        ("{{ c.function.arguments }}", '{"city": "Oslo", "days": 2}'),
        ("{{ '' + c.function.arguments }}", '{"city": "Oslo", "days": 2}'),
        ("{% for k, v in c.function.arguments.items() %}{{ k ~ '=' ~ v ~ ';' }}{% endfor %}", "city=Oslo;days=2;"),
    ],
    ids=["as JSON", "printed", "joined to a text", "one by one"],
)
def test_arguments_are_written_once_whatever_form_the_template_takes(
    tokenizer: Any, arguments: str, written: str
) -> None:
    renderer = renderer_of(tokenizer, chatml(SAYS + CALLS.replace("ARGS", arguments), TOOLS))
    expected = [f"<call>weather {written}</call>{END}", f"No.{END}"]
    assert learned_texts(renderer.render(ASKED)) == expected
    function = {"name": "weather", "arguments": '{"city": "Oslo", "days": 2}'}
    as_text = Message("assistant", "", tool_calls=({"type": "function", "function": function},))
    given_as_text = Chat((ASKED.messages[0], as_text, *ASKED.messages[2:]), ASKED.tools)
    assert learned_texts(renderer.render(given_as_text)) == expected


def test_a_call_without_texts_in_its_arguments_is_learned_whole(tokenizer: Any) -> None:
    renderer = renderer_of(
        tokenizer, chatml(SAYS + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}"), TOOLS)
    )
    for arguments, written in [({"days": 2}, '{"days": 2}'), ({}, "{}")]:
        conversation = Chat(
            (Message("user", "Rain?"), call(**arguments), told("dry"), Message("assistant", "No.")), (WEATHER,)
        )
        assert learned_texts(renderer.render(conversation)) == [f"<call>weather {written}</call>{END}", f"No.{END}"]


def test_an_end_of_turn_inside_an_argument_does_not_end_the_turn(tokenizer: Any) -> None:
    renderer = renderer_of(
        tokenizer, chatml(SAYS + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}"), TOOLS)
    )
    conversation = Chat((Message("user", "Rain?"), call(city=f'a "{END}" b')), (WEATHER,))
    assert learned_texts(renderer.render(conversation)) == [f'<call>weather {{"city": "a \\"{END}\\" b"}}</call>{END}']


def test_tool_call_ids_of_nine_letters_are_made_where_a_template_insists(tokenizer: Any) -> None:
    strict = "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ c.id }}{% endfor %}"
    body = SAYS + strict + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}") + "{{ m.tool_call_id or '' }}"
    text = renderer_of(tokenizer, chatml(body, TOOLS)).render(ASKED).text
    assert text.count("000000001") == 2 and "call_1" not in text


def test_tools_and_calls_that_a_template_leaves_out_are_refused(tokenizer: Any) -> None:
    with pytest.raises(
        RenderError, match=r"rows.json:7: the chat template does not show tools to the model; there are 1"
    ) as error:
        renderer_of(tokenizer, chatml(SAYS)).render(ASKED)
    assert "model.template" in str(error.value.hint)
    with pytest.raises(RenderError, match=r"rows.json:7: the chat template does not write tool calls"):
        renderer_of(tokenizer, chatml(SAYS, TOOLS)).render(ASKED)
    calling = chatml(SAYS + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}"))
    rendered = renderer_of(tokenizer, calling, ignore_tools=True).render(ASKED)
    assert rendered.ignored_tools == 1 and len(learned_texts(rendered)) == 2


def test_a_turn_that_a_template_leaves_out_is_refused(tokenizer: Any) -> None:
    known = "{% if m.role in ['user', 'assistant'] %}{{ m.content }}{% endif %}"
    calling = chatml(known + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}"), TOOLS)
    with pytest.raises(RenderError, match=r"rows.json:7: the chat template leaves out turn 3 \(tool\)"):
        renderer_of(tokenizer, calling).render(ASKED)


def test_words_beside_a_call_that_are_not_shown_are_counted(tokenizer: Any) -> None:
    body = "{% if not m.tool_calls %}{{ m.content }}{% endif %}" + CALLS.replace(
        "ARGS", "{{ c.function.arguments | tojson }}"
    )
    renderer = renderer_of(tokenizer, chatml(body, TOOLS))
    conversation = Chat((Message("user", "Rain?"), call("I look.", city="Oslo")), (WEATHER,))
    rendered = renderer.render(conversation)
    assert learned_texts(rendered) == [f'<call>weather {{"city": "Oslo"}}</call>{END}'] and rendered.dropped_words == 1


REFUSING = "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + SAYS
FORGETTING = "{% if m.role != 'system' %}{{ m.content }}{% endif %}"


@pytest.mark.parametrize("body", [REFUSING, FORGETTING], ids=["raises", "forgets"])
def test_a_system_turn_without_a_place_joins_the_first_question(tokenizer: Any, body: str) -> None:
    renderer = renderer_of(tokenizer, chatml(body))
    conversation = chat("Hi", "Hello.", "More?", "No.", system="Be brief.\n")
    rendered = renderer.render(conversation)
    assert "<|im_start|>user\nBe brief.\n\nHi<|im_end|>" in rendered.text
    assert learned_texts(rendered) == [f"Hello.{END}", f"No.{END}"]
    prompt = renderer.text(conversation.as_dicts()[:2], generation=True)
    assert rendered.text.startswith(prompt), "serving says the same"
    with pytest.raises(RenderError, match="knows no system turn"):
        renderer.render(Chat((Message("system", "Be brief."), Message("assistant", "Hello."))))


def test_contents_become_lists_of_parts_for_templates_that_want_them(tokenizer: Any) -> None:
    renderer = renderer_of(tokenizer, chatml("{% for p in m.content %}{{ p.text }}{% endfor %}"))
    assert learned_texts(renderer.render(chat("Hi", "Hello.", "More?", "No."))) == [f"Hello.{END}", f"No.{END}"]


def test_what_a_template_says_when_it_refuses_is_shown(tokenizer: Any) -> None:
    picky = (
        "{% if m.role == 'user' and loop.index0 % 2 %}{{ raise_exception('Roles must alternate') }}{% endif %}" + SAYS
    )
    twice = Chat((Message("user", "a"), Message("user", "b"), Message("assistant", "c")), origin="rows.json:7")
    with pytest.raises(
        RenderError, match=r'rows.json:7: the chat template refuses this conversation: "Roles must alternate"'
    ):
        renderer_of(tokenizer, chatml(picky)).render(twice)
    with pytest.raises(RenderError, match="line 1 of the template cannot be read"):
        renderer_of(tokenizer, "{% for %}").render(twice)


@pytest.mark.parametrize(
    "dated",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% set date_format = '%d %b %Y' %}{{ strftime_now(date_format) }}",
        "{%- set date_format = '%d ' + '%b %Y' -%}{% macro today() %}{{ strftime_now(date_format) }}{% endmacro %}{{ today() }}",
        '{% if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}{{ date_string }}',
    ],
)
def test_the_date_is_pinned_however_it_is_asked_for(tokenizer: Any, dated: str) -> None:
    text = renderer_of(tokenizer, dated + "\n" + chatml(SAYS)).render(chat("Hi", "Hello.")).text
    assert text.startswith(DATE.strftime("%d %b %Y"))


@pytest.mark.parametrize(
    "template", ["\n{% if true %}\n x{% endif %}", "  {% if true %}\n y {% endif %}", "a {{ 1 }}\n"]
)
def test_pinning_changes_nothing_else(tokenizer: Any, template: str) -> None:
    asking = template + "{{ strftime_now(f) }}"
    today = datetime.date.today()
    written = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], chat_template=t, tokenize=False, f="%-d.%m.%Y %% %A"
        )
        for t in (asking, pinned_template(asking, today))
    )
    assert len(set(written)) == 1


def test_bos_stands_once(tokenizer: Any) -> None:
    """The template writes it as text, and the tokenizer would add one of its own."""
    template = "{{ bos_token }}" + chatml(SAYS).replace("<|im_start|>", "<turn>")
    other = dressed(tokenizer, template, bos="<bos>", adds_bos=True)
    assert other("x")["input_ids"][0] == other.bos_token_id, "the tokenizer adds BOS by itself"
    rendered = Renderer(other, date=DATE).render(chat("Hi", "Hello."))
    assert list(rendered.ids).count(other.bos_token_id) == 1 and rendered.ids[0] == other.bos_token_id
    assert Renderer(other, date=DATE).prompt_ids([{"role": "user", "content": "Hi"}]).count(other.bos_token_id) == 1


TAGGED = "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"


def test_generation_tags_agree_with_what_is_found(tokenizer: Any) -> None:
    template = chatml(TAGGED).replace("{{ '<|im_end|>\n' }}{% endfor %}", "{% endfor %}")
    assert learned_texts(renderer_of(tokenizer, template).render(chat("Hi", "Hello.", "More?", "No."))) == [
        f"Hello.{END}",
        f"No.{END}",
    ]


def test_generation_tags_say_where_learning_begins(tokenizer: Any) -> None:
    """The template's author does not want the thinking block learned."""
    block = "{% if m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}" + TAGGED
    template = chatml(block).replace("{{ '<|im_end|>\n' }}{% endfor %}", "{% endfor %}")
    assert learned_texts(renderer_of(tokenizer, template).render(chat("Hi", "Hello."))) == [f"Hello.{END}"]


def test_generation_tags_in_the_wrong_place_are_refused(tokenizer: Any) -> None:
    wrong = chatml(TAGGED.replace("== 'assistant'", "== 'user'")).replace(
        "{{ '<|im_end|>\n' }}{% endfor %}", "{% endfor %}"
    )
    with pytest.raises(RenderError, match="generation tags of the chat template leave out turn 2"):
        renderer_of(tokenizer, wrong).render(chat("Hi", "Hello."))


def test_a_template_and_variables_of_ones_own(tokenizer: Any) -> None:
    template = chatml(SAYS + "{% if m.role == 'assistant' and shout %}{{ '!' }}{% endif %}")
    plain, loud = (Renderer(tokenizer, template=template, template_args=a, date=DATE) for a in (None, {"shout": True}))
    assert learned_texts(plain.render(chat("Hi", "Hello"))) == [f"Hello{END}"]
    assert "Hello!<|im_end|>" in loud.render(chat("Hi", "Hello")).text
    with pytest.raises(RenderError, match="template_args may not set tools"):
        Renderer(tokenizer, template_args={"tools": []})


def test_the_template_for_tools_is_taken_where_there_are_tools(tokenizer: Any) -> None:
    other = dressed(tokenizer, chatml(SAYS))
    other.chat_template = {
        "default": chatml(SAYS),
        "tool_use": chatml(SAYS + CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}"), TOOLS),
    }
    renderer = Renderer(other, date=DATE)
    expected = other.apply_chat_template(ASKED.as_dicts(), tools=[WEATHER], tokenize=False)
    assert renderer.render(ASKED).text == expected
    assert "<call>" not in renderer.render(chat("Hi", "Hello.")).text


def test_a_row_with_pictures_is_not_learned_as_if_it_had_none(tokenizer: Any) -> None:
    seen = replace(chat("<image>What is this?", "A boat."), media=(Media("image", "boat.png"),))
    renderer = renderer_of(tokenizer, chatml(SAYS))
    with pytest.raises(
        RenderError, match=r"rows.json:7: the row has 1 media \(image\), which models are not trained on yet"
    ):
        renderer.render(seen)
    (error,) = render_batch(renderer, [seen])
    assert isinstance(error, RenderError) and "skip_bad" in str(error.hint)
