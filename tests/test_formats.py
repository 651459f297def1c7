"""What the rows of each format become, which format a row is taken for, and the message for what cannot be read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.config.errors import DataError
from tunesmith.config.plugins import load, names
from tunesmith.data.adapt import adapt
from tunesmith.data.columns import FieldMap
from tunesmith.data.detect import FORMATS, detect, formats, name_of
from tunesmith.data.example import KINDS, Chat, Example, Feedback, Media, Message, Preference, Prompt, Text
from tunesmith.data.thinking import block, take_apart

Row = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant"}


def share(*turns: tuple[str, Any], **more: Any) -> Row:
    return {"conversations": [{"from": who, "value": said} for who, said in turns], **more}


def chatml(*turns: tuple[str, Any], **more: Any) -> Row:
    return {"messages": [{"role": who, "content": said} for who, said in turns], **more}


def said(*turns: tuple[str, Any]) -> list[Row]:
    return [{"role": who, "content": text} for who, text in turns]


def read(row: Row, format: str | None = None, **fields: Any) -> Any:
    """The row as the format it is taken for, or as the one named."""
    known = FieldMap(**fields)
    name, _ = detect([("f:1", row)], known, format)
    return load(FORMATS, name).convert(row, "f:1", known)


def told(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in messages]


def refused(row: Any, *words: str, format: str | None = None, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(row, format, **fields)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.hint, f"no hint: {caught.value}"
    return caught.value


# --- which format a row is taken for -------------------------------------------------------------------------------------

TYPICAL: dict[str, list[Row]] = {
    "alpaca": [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b", "system": "s", "history": []},
        {"prompt": "a", "response": "b"},
        {"query": "a", "response": "b"},
        {"input": "a", "output": "b"},
        {"instruction": "a", "input": "c", "output": "b", "text": "a prompt with its answer"},
        {"instruction": "a", "chosen": "b", "rejected": "c"},
        {"instruction": "a", "output": "b", "kto_tag": True},
    ],
    "sharegpt": [
        share(("human", "a"), ("gpt", "b")),
        share(("human", "a"), tools="[]", system="s"),
        share(("human", "a"), chosen={"from": "gpt", "value": "b"}, rejected={"from": "gpt", "value": "c"}),
        {"conversation": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 3},
        {"conversations": []},
    ],
    "openai": [
        chatml(("user", "a"), ("assistant", "b")),
        {"conversations": said(("user", "a"), ("assistant", "b"))},
        chatml(("user", "a"), ("assistant", "b"), prompt="a", prompt_id="7"),
        {"messages": []},
    ],
    "preference": [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": said(("user", "a")), "chosen": said(("assistant", "b")), "rejected": said(("assistant", "c"))},
        {"chosen": said(("user", "a"), ("assistant", "b")), "rejected": said(("user", "a"), ("assistant", "c"))},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {  # all of a pair, with the chosen conversation again under `messages`
            "prompt": "a", "messages": said(("user", "a"), ("assistant", "b")),
            "chosen": said(("user", "a"), ("assistant", "b")), "rejected": said(("user", "a"), ("assistant", "c")),
        },
    ],
    "feedback": [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": said(("user", "a")), "completion": said(("assistant", "b")), "label": False},
    ],
    "completion": [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": "sports"},
        {"prompt": said(("user", "a")), "completion": said(("assistant", "b"))},
    ],
    "prompt": [
        {"prompt": "a"},
        {"prompt": said(("user", "a")), "solution": "4"},
        {"prompt": "a", "answer": "4", "verifier": {"kind": "math"}},
    ],
    "text": [{"text": "a"}, {"text": "a", "label": 1, "meta": {"url": "x"}}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in TYPICAL.items() for row in rows])
def test_a_row_is_taken_for_its_own_format(name: str, row: Row) -> None:
    assert detect([("f:1", row)], FieldMap())[0] == name


def test_every_format_has_typical_rows_and_a_place_in_the_order() -> None:
    assert TYPICAL.keys() == set(names(FORMATS))
    order = [name_of(f) for f in formats()]
    assert order == ["preference", "feedback", "sharegpt", "openai", "alpaca", "completion", "text", "prompt"]
    assert len({f.PRECEDENCE for f in formats()}) == len(order), "two formats at one place: their order would be chance"


def test_only_the_documented_overlaps_exist() -> None:
    """Of the typical rows of one format, others may claim only those that the order decides."""
    overlaps = {
        (name, name_of(plugin))
        for name, rows in TYPICAL.items()
        for row in rows
        for plugin in formats()
        if name_of(plugin) != name and plugin.detect(row)
    }
    assert overlaps == {("feedback", "completion"), ("preference", "openai"), ("alpaca", "text"), ("openai", "prompt")}


def test_the_first_row_that_tells_decides() -> None:
    rows = [("f:1", "words"), ("f:2", {"x": 1}), ("f:3", {"text": "a"})]
    assert detect(rows, FieldMap()) == ("text", "it has the key 'text'")


@pytest.mark.parametrize(
    ("columns", "row", "name"),
    [
        ({"prompt": "text"}, {"text": "a"}, "text"),
        ({"prompt": "raw_content"}, {"raw_content": "a", "meta": "m"}, "text"),
        ({"prompt": "input", "response": "target"}, {"kind": "k", "input": "a", "target": "b"}, "alpaca"),
        ({"prompt": "prompt", "response": "text"}, {"prompt": "a", "text": "b"}, "alpaca"),
        ({"prompt": "q", "response": "a", "system": "s"}, {"q": "a", "a": "b", "s": ""}, "alpaca"),
        ({"prompt": "problem", "reference": "solution"}, {"problem": "a", "solution": "4"}, "prompt"),
        ({"messages": "talk"}, {"talk": said(("user", "a"), ("assistant", "b"))}, "openai"),
        ({"chosen": "good", "rejected": "bad"}, {"prompt": "a", "good": "b", "bad": "c"}, "preference"),
    ],
)  # fmt: skip
def test_mapped_columns_are_seen(columns: dict[str, str], row: Row, name: str) -> None:
    assert detect([("f:1", row)], FieldMap(columns))[0] == name
    assert isinstance(read(row, columns=columns), tuple(KINDS.values()))


def test_a_column_is_not_read_twice() -> None:
    chat = read({"input": "a", "target": "b"}, columns={"prompt": "input", "response": "target"})
    assert told(chat.messages) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("row", "format", "fields", "words"),
    [
        ({"question": "a", "reply": "b"}, None, {}, ["cannot tell the format", "'question', 'reply'", "sharegpt: ", "columns"]),
        (share(("human", "a"), ("gpt", "b")), "alpaca", {}, ["named alpaca", "look like sharegpt", "'conversations'"]),
        ({"instruction": "a", "output": "b"}, "openai", {}, ["named openai", "look like alpaca"]),
        ({"text": "a"}, "alpaca", {}, ["named alpaca", "look like text"]),
        ({"instruction": "a", "output": "b"}, None, {"columns": {"promt": "x"}}, ["unknown name 'promt'", "did you mean 'prompt'"]),
        ({"q": "a", "output": "b"}, None, {"columns": {"q": "prompt"}}, ["unknown name 'q'", "not the other way round"]),
        ({"instruction": "a", "output": "b"}, None, {"columns": {"prompt": "instrution"}}, ["no column 'instrution'", "did you mean"]),
        ({"text": "a"}, "text", {"columns": {"messages": "text"}}, ["text has no 'messages'", "it has: prompt"]),
        ({"text": "a"}, "text", {"ranking": True}, ["no pairs", "ranking"]),
        (share(("human", "a")), None, {"tags": {"usr_tag": "x"}}, ["unknown name 'usr_tag'", "did you mean 'user_tag'"]),
        (share(("human", "a")), None, {"tags": {"user_tag": "x", "assistant_tag": "x"}}, ["the same word 'x'"]),
    ],
)  # fmt: skip
def test_a_format_or_mapping_that_does_not_fit(row: Row, format: str | None, fields: Row, words: list[str]) -> None:
    refused(row, *words, format=format, **fields)


def test_a_single_row_of_another_format_is_told_what_it_looks_like() -> None:
    good = {"instruction": "a", "output": "b"}
    rows = [("f:1", good), ("f:2", share(("human", "a"), ("gpt", "b")))]
    name, _ = detect(rows, FieldMap())
    with pytest.raises(DataError, match=r"f:2[\s\S]*looks like sharegpt"):
        load(FORMATS, name).convert(rows[1][1], "f:2", FieldMap())


# --- roles and their order -----------------------------------------------------------------------------------------------

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize(
    ("word", "role"),
    [(w, "user") for w in ("human", "user", "Human", "USER")]
    + [(w, "assistant") for w in ("gpt", "assistant", "bot", "model", "chatgpt")]
    + [(w, "tool") for w in ("observation", "tool", "tool_response", "ipython", "function")]
    + [(w, "system") for w in ("system", "developer")]
    + [(w, "call") for w in ("function_call", "tool_call")],
)
def test_role_words(word: str, role: str) -> None:
    rows = {
        "user": [(word, "a"), ("gpt", "b")],
        "assistant": [("human", "a"), (word, "b")],
        "tool": [("human", "a"), ("function_call", CALL), (word, "3"), ("gpt", "b")],
        "system": [(word, "s"), ("human", "a"), ("gpt", "b")],
        "call": [("human", "a"), (word, CALL)],
    }
    chat = read(share(*rows[role]))
    expected = {"call": "assistant"}.get(role, role)
    place = next(i for i, (who, _) in enumerate(rows[role]) if who == word)
    assert chat.messages[place].role == expected
    assert bool(chat.messages[place].tool_calls) == (role == "call")


def test_a_set_s_own_words() -> None:
    tags = {
        "role_tag": "who", "content_tag": "said", "user_tag": "kunde", "assistant_tag": "helfer",
        "observation_tag": "ergebnis", "function_tag": "function", "system_tag": "regel",
    }  # fmt: skip
    words = [("regel", "S"), ("kunde", "a"), ("function", CALL), ("ergebnis", "3"), ("helfer", "b")]
    row = {"talk": [{"who": w, "said": s} for w, s in words]}
    chat = read(row, columns={"messages": "talk"}, tags=tags)
    assert [m.role for m in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2].tool_calls[0]["function"]["name"] == "weather"


def test_turns_and_history_as_json_text() -> None:
    row = share(("human", "a"), ("gpt", "b"))
    assert read({"conversations": json.dumps(row["conversations"])}) == read(row)
    alpaca = {"instruction": "a", "output": "b", "history": '[["c", "d"]]'}
    assert told(read(alpaca).messages)[:2] == [("user", "c"), ("assistant", "d")]
    refused({"conversations": "[{"}, "should be a list of turns, found str", format="sharegpt")


def test_a_system_turn_and_a_column_say_the_same_or_one_is_empty() -> None:
    turns = [("human", "a"), ("gpt", "b")]
    assert told(read(share(*turns, system="column")).messages)[0] == ("system", "column")
    assert told(read(share(("system", "turn"), *turns, system=" turn ")).messages)[0] == ("system", "turn")
    with pytest.raises(DataError, match="only one of them"):  # LLaMA-Factory drops the column's without a word
        read(share(("system", "turn"), *turns, system="column"))
    assert told(read(share(("system", " "), *turns)).messages)[0] == ("user", "a")


def test_several_tool_results_follow_several_calls() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
            {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"},
            {"role": "tool", "content": "", "tool_call_id": "c2"},
            {"role": "assistant", "content": "b", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    chat = read(row)
    assert chat.messages[1] == Message("assistant", "", ({**call, "function": {"name": "f", "arguments": {"x": 1}}},
                                                          {**call, "id": "c2", "function": {"name": "f", "arguments": {"x": 1}}}))  # fmt: skip
    assert chat.messages[2] == Message("tool", "3", name="f", tool_call_id="c1")
    assert chat.tools == ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([("human", "a"), ("gpt", "b"), ("human", "c")], ["ends with turn 3", "no answer to learn", "format: prompt"]),
        ([], ["no turn of the user"]),
        ([("system", "s")], ["no turn of the user"]),
        ([("gpt", "b"), ("human", "a"), ("gpt", "b")], ["turn 1", "begins with the assistant", "put the question"]),
        ([("observation", "3"), ("gpt", "b")], ["turn 1", "begins with the tool"]),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], ["turn 2", "another user turn", "join"]),
        ([("human", "a"), ("gpt", "b"), ("function_call", CALL)], ["turn 3", "join", "tool_calls"]),
        ([("human", "a"), ("function_call", CALL), ("observation", "3"), ("human", "b"), ("gpt", "c")], ["turn 4", "tool result without"]),
        ([("human", "a"), ("observation", "3"), ("gpt", "c")], ["turn 2", "tool result that follows the user"]),
        ([("human", "a"), ("gpt", "b"), ("system", "s"), ("human", "a"), ("gpt", "b")], ["turn 3", "system turn that is not the first"]),
        ([("human", ""), ("gpt", "b")], ["turn 1 (user) is empty"]),
        ([("human", "a"), ("gpt", " \n")], ["turn 2 (assistant) is empty"]),
        ([("human", "a"), ("gpt", "<think>b</think>")], ["turn 2 (assistant) is empty", "nothing is said"]),
        ([("human", "a"), ("gpt", 3)], ["turn 2", "should be text, found int: '3'"]),
        ([("human", "a"), ("gpt", None)], ["turn 2", "should be text, found null"]),
        ([("human", "a"), (7, "b")], ["turn 2", "role should be a word, found int"]),
        ([("human", "a"), ("alien", "b")], ["turn 2", "'alien' is not known", "tags"]),
        ([("human", "a"), ("function_call", "weather(Oslo)")], ["turn 2", "not valid JSON", '"arguments"']),
        ([("human", "a"), ("function_call", '{"arguments": {}}')], ["turn 2", "not a tool call"]),
        ([("human", "a"), ("function_call", '{"name": "f", "arguments": [1]}')], ["turn 2", "arguments should be an object"]),
        ([("human", "a"), ("function_call", "[]")], ["turn 2", "empty"]),
    ],
)  # fmt: skip
def test_turns_that_cannot_be_learned_from(turns: list[tuple[str, Any]], words: list[str]) -> None:
    refused(share(*turns), "f:1", *words, format="sharegpt")


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}, ["turn 1", "only the assistant"]),
        ({"content": "a"}, ["turn 1", "no 'role'"]),
        ({"role": "user"}, ["turn 1", "no 'content'"]),
        ({"role": "user", "content": {"text": "a"}}, ["turn 1", "should be text, found dict"]),
        ({"role": "user", "content": "a", "reasoning": "hm"}, ["turn 1", "only the assistant can have thoughts"]),
        ({"role": "user", "content": [{"type": "table"}]}, ["turn 1, part 1", "known types"]),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, ["turn 1, part 1", "should be text"]),
        ({"role": "user", "content": "a", "train": True, "weight": 0}, ["turn 1", "contradict"]),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_read(turn: Row, words: list[str]) -> None:
    refused({"messages": [turn, {"role": "assistant", "content": "b"}]}, *words, format="openai")


def test_what_is_learned_can_be_told_per_turn() -> None:
    row = {"messages": [
        {"role": "user", "content": "a", "train": True}, {"role": "assistant", "content": "b", "weight": 0.0},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": None},
    ]}  # fmt: skip
    assert [m.learned for m in read(row).messages] == [True, False, False, True]


# --- tools ---------------------------------------------------------------------------------------------------------------

DESCRIBED = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "value",
    [
        [DESCRIBED], json.dumps([DESCRIBED]), [{"type": "function", "function": DESCRIBED}], DESCRIBED,
        json.dumps(DESCRIBED), [json.dumps(DESCRIBED)], [{"type": "function", **DESCRIBED}],
    ],
)  # fmt: skip
def test_tools_have_one_form(value: Any) -> None:
    turns = [("human", "a"), ("gpt", "b")]
    assert read(share(*turns, tools=value)).tools == ({"type": "function", "function": DESCRIBED},)
    assert read({"instruction": "a", "output": "b", "tools": value}).tools == read(share(*turns, tools=value)).tools


@pytest.mark.parametrize("value", [None, "", "[]", [], "null"])
def test_no_tools(value: Any) -> None:
    assert read(share(("human", "a"), ("gpt", "b"), tools=value)).tools == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[{", ["'tools'", "not valid JSON"]),
        ([3], ["'tools', tool 1", "expected a description, found int"]),
        ([{"description": "d"}], ["tool 1", "no name"]),
        ([{"type": "web_search"}], ["tool 1", "'web_search'"]),
        ([{"type": "function", "function": "f"}], ["tool 1", "no name"]),
    ],
)
def test_bad_tools(value: Any, words: list[str]) -> None:
    refused(share(("human", "a"), ("gpt", "b"), tools=value), *words)


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": CALL},
        {"from": "function_call", "value": f"[{CALL}]"},
        {"from": "function_call", "value": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"from": "gpt", "value": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"from": "gpt", "value": None, "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
    ],
)  # fmt: skip
def test_calls_have_one_form(turn: Row) -> None:
    chat = read({"conversations": [{"from": "human", "value": "a"}, turn]})
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert chat.messages[1] == Message("assistant", "", (call,))


def test_a_call_without_arguments_and_with_a_thought() -> None:
    for arguments in ('""', "null", "{}", '"{}"'):
        text = f'<think>\nLook.\n</think>\n\n{{"name": "now", "arguments": {arguments}}}'
        message = read(share(("human", "a"), ("function_call", text))).messages[1]
        assert message.thinking == "Look." and message.tool_calls[0]["function"] == {"name": "now", "arguments": {}}


# --- thinking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("<think>hm</think>yes", "hm", "yes"),
        ("\n<think>\n\n a\nb \n</think> yes", " a\nb ", " yes"),
        ("<think>hm</think>yes</think>", "hm", "yes</think>"),
        ("<think>\n\n</think>\n\nyes", "", "<think>\n\n</think>\n\nyes"),
        ("yes <think>no</think>", "", "yes <think>no</think>"),
        ("no </think>", "", "no </think>"),
    ],
)
def test_a_thought_is_taken_apart(text: str, thinking: str, answer: str) -> None:
    message = read(share(("human", "a"), ("gpt", text))).messages[1]
    assert (message.thinking, message.content) == (thinking, answer)
    assert take_apart(text, "f:1").text == text
    assert read({"instruction": "a", "output": text}).messages[1] == message


@given(st.text(alphabet="ab \n<>/think"), st.text(alphabet="ab \n<>/think"))
def test_taking_apart_is_reversible(thinking: str, answer: str) -> None:
    text = block(thinking, answer)
    try:
        parts = take_apart(text, "f:1")
    except DataError:
        return
    assert parts.text == text
    clean = thinking.strip("\n") == thinking and thinking.strip() and "</think>" not in thinking
    if clean and answer.lstrip("\n") == answer:
        assert (parts.thinking, parts.answer) == (thinking, answer)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_under_a_key(key: str) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: " hm\n"}]}
    assert read(row).messages[1] == Message("assistant", "b", thinking=" hm\n")
    row["messages"][1]["content"] = "<think>hmm</think>b"
    refused(row, "turn 2", "two different thoughts")


def test_a_thought_that_is_not_closed() -> None:
    refused(share(("human", "a"), ("gpt", "<think>hm, so the answer is")), "turn 2", "not closed", "</think>")
    refused({"instruction": "a", "output": "<think>hm"}, "'output'", "not closed")


# --- media ---------------------------------------------------------------------------------------------------------------


def test_media_are_counted_and_carried() -> None:
    row = share(("human", "<image>and<image>"), ("gpt", "b"), images=["a.png", {"path": "b.png", "bytes": None}])
    assert read(row).media == (Media("image", "a.png"), Media("image", "b.png"))
    refused({**row, "images": ["a.png"]}, "2 times <image>", "1 image")
    refused({**row, "images": [["a.png"]]}, "not a image", "list")
    refused({**row, "images": [3, 4]}, "entry 1", "not a image")


def test_media_without_a_placeholder_belong_to_the_first_user_turn() -> None:
    row = share(("system", "s"), ("human", "a"), ("gpt", "b"), images="x.png", videos=[], audios=["x.wav", "y.wav"])
    chat = read(row)
    assert chat.messages[1].content == "<audio><audio><image>a"
    assert [m.kind for m in chat.media] == ["image", "audio", "audio"]
    alpaca = read({"instruction": "", "output": "b", "image": {"bytes": b"\x00", "path": "x.png"}})
    assert told(alpaca.messages)[0] == ("user", "<image>")
    assert alpaca.media == (Media("image", "data:image/png;base64,AA=="),)


def test_a_placeholder_is_a_word_when_there_are_no_media() -> None:
    row = share(("human", "What does <image> mean?"), ("gpt", "b"))
    assert read(row).messages[0].content == "What does <image> mean?"
    refused({**row, "images": []}, "1 times <image>", "'images' is empty", columns={"images": "images"})


def test_parts_of_a_content() -> None:
    parts = [
        {"type": "text", "text": "See "}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "text", "text": " hear "}, {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "video", "video": "z.mp4", "text": None},
    ]  # fmt: skip
    chat = read(
        chatml(("user", parts), ("assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]))
    )
    assert chat.messages[0].content == "See <image> hear <audio><video>"
    assert chat.messages[1] == Message("assistant", "b", thinking="hm")
    assert [m.source for m in chat.media] == ["https://x/y.png", "data:audio/wav;base64,AA==", "z.mp4"]
    row = chatml(("user", [{"type": "image"}, {"type": "text", "text": "a"}]), ("assistant", "b"), images=["a.png"])
    assert read(row).media == (Media("image", "a.png"),)
    refused({**chatml(("user", parts), ("assistant", "b")), "images": ["a.png"]}, "some images are given in the turns")


# --- pairs and verdicts --------------------------------------------------------------------------------------------------

ASKED, GOOD, BAD = ("user", "a"), ("assistant", "b"), ("assistant", "c")
PAIR = (((ASKED,)), ((GOOD,)), ((BAD,)))


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, {}),
        ({"question": "a", "chosen": "b", "rejected": "c"}, {"ranking": True, "columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}}),
        ({"instruction": "a", "output": "z", "chosen": "b", "rejected": "c"}, {"ranking": True}),
        (share(("human", "a"), chosen={"from": "gpt", "value": "b"}, rejected={"from": "gpt", "value": "c"}), {"ranking": True}),
        (share(("human", "a"), chosen={"from": "gpt", "value": "b"}, rejected={"from": "gpt", "value": "c"}), {}),
        (share(("human", "a"), good="b", bad="c"), {"ranking": True, "columns": {"messages": "conversations", "chosen": "good", "rejected": "bad"}}),
        (chatml(ASKED, chosen=said(GOOD), rejected=said(BAD)), {}),
        ({"prompt": said(ASKED), "chosen": said(GOOD), "rejected": said(BAD)}, {}),
        ({"chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)}, {}),
        ({"prompt": "a", "chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)}, {}),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, {}),
    ],
)  # fmt: skip
def test_pairs_of_every_family(row: Row, fields: Row) -> None:
    pair = read(row, **fields)
    assert isinstance(pair, Preference)
    assert (told(pair.prompt), told(pair.chosen), told(pair.rejected)) == ([ASKED], [GOOD], [BAD])


def test_a_pair_with_everything() -> None:
    row = share(
        ("human", "a"), ("gpt", "b"), ("human", "c"), system="S", images=["x.png"], tools=[DESCRIBED],
        chosen={"from": "function_call", "value": CALL}, rejected={"from": "gpt", "value": "<think>hm</think>d"},
    )  # fmt: skip
    pair = read(row)
    assert told(pair.prompt) == [("system", "S"), ("user", "<image>a"), ("assistant", "b"), ("user", "c")]
    assert pair.chosen[0].tool_calls and pair.rejected == (Message("assistant", "d", thinking="hm"),)
    assert pair.tools and pair.media == (Media("image", "x.png"),)


def test_the_prompt_of_two_texts_ends_at_a_white_space() -> None:
    pair = read({"chosen": "The sky is bright", "rejected": "The sky is brown"})
    assert (pair.prompt[0].content, pair.chosen[0].content) == ("The sky is", " bright")


def test_the_chosen_answers_alone_can_be_learned() -> None:
    row = {"chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)}
    assert told(read(row, "openai", columns={"messages": "chosen"}).messages) == [ASKED, GOOD]
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert told(read(texts, columns={"prompt": "prompt", "response": "chosen"}).messages) == [ASKED, GOOD]


def test_earlier_answers_belong_to_the_prompt() -> None:
    before = [ASKED, GOOD, ("user", "and?")]
    pair = read({"chosen": said(*before, GOOD), "rejected": said(*before, BAD)})
    assert told(pair.prompt) == before and len(pair.chosen) == 1


@pytest.mark.parametrize(
    ("row", "fields", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": ""}, {}, ["'rejected'", "empty"]),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, {}, ["'rejected'", "should be text", "int"]),
        ({"chosen": "b", "rejected": "c"}, {}, ["no prompt", "do not begin alike"]),
        ({"chosen": said(ASKED, GOOD), "rejected": said(ASKED, GOOD)}, {}, ["are the same"]),
        ({"chosen": said(ASKED, GOOD), "rejected": said(("user", "x"), BAD)}, {}, ["no turn in common"]),
        ({"prompt": "z", "chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)}, {}, ["'prompt' is not among", "'z'"]),
        (share(("human", "a"), ("gpt", "b"), chosen={"from": "gpt", "value": "b"}, rejected={"from": "gpt", "value": "c"}), {"ranking": True}, ["prompt ends with turn 2"]),
        (share(("human", "a"), chosen={"from": "human", "value": "b"}, rejected={"from": "gpt", "value": "c"}), {"ranking": True}, ["'chosen', turn 1", "user"]),
        (share(("human", "a"), ("gpt", "b")), {"ranking": True}, ["'chosen' is missing", "ranking"]),
        ({"instruction": "a", "output": "b"}, {"ranking": True}, ["'chosen' is missing"]),
    ],
)  # fmt: skip
def test_pairs_that_are_none(row: Row, fields: Row, words: list[str]) -> None:
    refused(row, "f:1", *words, **fields)


@pytest.mark.parametrize("value", [True, 1, "true", "True", 1.0])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "a", "completion": "b"}, {}),
        ({"prompt": said(ASKED), "completion": said(GOOD)}, {"kto_tag": "label"}),
        ({"instruction": "a", "output": "b"}, {"kto_tag": "label"}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "prompt", "response": "completion", "kto_tag": "label"}),
        (share(("human", "a"), ("gpt", "b")), {"messages": "conversations", "kto_tag": "label"}),
        (chatml(ASKED, GOOD), {"messages": "messages", "kto_tag": "label"}),
        ({"completion": said(ASKED, GOOD)}, {"messages": "completion", "kto_tag": "label"}),
    ],
)  # fmt: skip
def test_verdicts_of_every_family(row: Row, columns: dict[str, str], value: Any) -> None:
    feedback = read({**row, "label": value}, "feedback" if value == 1.0 and not columns else None, columns=columns)
    assert isinstance(feedback, Feedback) and feedback.good is True
    assert told(feedback.chat.messages) == [ASKED, GOOD]


@pytest.mark.parametrize("value", ["maybe", 2, None, [True]])
def test_a_verdict_is_true_or_false(value: Any) -> None:
    row = {"instruction": "a", "output": "b", "mark": value}
    with pytest.raises(DataError, match="'mark' should be true, false, 0 or 1"):
        read(row, columns={"kto_tag": "mark"})


# --- prompts, completions, texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reference", "verifier"),
    [
        ({}, None, None),
        ({"solution": "x = 4", "answer": "4"}, "4", None),
        ({"ground_truth": 72}, "72", None),
        ({"reference": 0.5, "answer": None}, "0.5", None),
        ({"answer": "4", "verifier": "math"}, "4", {"kind": "math"}),
        ({"verifier": '{"kind": "regex", "pattern": "4"}'}, None, {"kind": "regex", "pattern": "4"}),
    ],
)
def test_prompts(more: Row, reference: str | None, verifier: Row | None) -> None:
    for prompt in ("2 + 2?", said(("user", "2 + 2?"))):
        example = read({"prompt": prompt, **more})
        assert isinstance(example, Prompt) and told(example.messages) == [("user", "2 + 2?")]
        assert (example.reference, example.verifier) == (reference, verifier)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": ""}, ["empty"]),
        ({"prompt": 3}, ["'prompt' should be text"]),
        ({"prompt": said(ASKED, GOOD)}, ["ends with turn 2", "answer of the assistant"]),
        ({"prompt": "a", "answer": ["4"]}, ["'answer' should be text, found list"]),
        ({"prompt": "a", "verifier": {"name": "math"}}, ["'verifier'", "judged", '"kind"']),
    ],
)
def test_prompts_that_are_none(row: Row, words: list[str]) -> None:
    refused(row, *words, format="prompt")


def test_only_the_completion_is_learned() -> None:
    chat = read({"prompt": said(ASKED, GOOD, ASKED), "completion": "d"})
    assert [m.learned for m in chat.messages] == [False, False, False, True]


def test_text() -> None:
    assert read({"text": " a\n"}) == Text(" a\n")
    assert read({"prompt": "a", "text": "b"}, "text") == Text("b")
    assert read({"content": "a"}, "alpaca", columns={"prompt": "content"}) == Text("a")
    refused({"text": " "}, "the text is empty")
    refused({"text": None}, "should be text, found null")


# --- one kind for another ------------------------------------------------------------------------------------------------

CHAT = Chat((Message("system", "s"), Message("user", "a"), Message("assistant", "b", thinking="hm")), origin="f:1")
EXAMPLES: dict[str, Example] = {
    "chat": CHAT,
    "preference": Preference(CHAT.messages[:2], CHAT.messages[2:], (Message("assistant", "c"),), origin="f:1"),
    "feedback": Feedback(CHAT, True),
    "prompt": Prompt((Message("user", "a"),), origin="f:1"),
    "text": Text("a", "f:1"),
}


def test_what_one_kind_gives_to_another() -> None:
    assert all(adapt(example, kind) is example for kind, example in EXAMPLES.items())
    assert adapt(EXAMPLES["feedback"], "chat") is CHAT
    asked = adapt(CHAT, "prompt")
    assert isinstance(asked, Prompt) and asked.messages == CHAT.messages[:2] and asked.reference == "b"
    for kind in ("preference", "feedback"):
        assert adapt(EXAMPLES[kind], "prompt").messages == CHAT.messages[:2]  # type: ignore[union-attr]
    assert adapt(Feedback(CHAT, False), "prompt").reference is None  # type: ignore[union-attr]
    assert adapt(EXAMPLES["prompt"], "text") == Text("a")
    assert adapt(EXAMPLES["text"], "prompt") == EXAMPLES["prompt"]


def test_what_one_kind_cannot_give_is_said_with_a_mend() -> None:
    possible = {("feedback", "chat"), ("prompt", "text"), *((kind, "prompt") for kind in KINDS)}
    for own, example in EXAMPLES.items():
        for kind in KINDS:
            if own != kind and (own, kind) not in possible:
                with pytest.raises(DataError, match=f"f:1: this row is a {own} example") as caught:
                    adapt(example, kind)
                assert caught.value.hint
    with pytest.raises(DataError, match="found bad"):
        adapt(Feedback(CHAT, False), "chat")
    with pytest.raises(DataError, match="more than a text"):
        adapt(Prompt(CHAT.messages[:2], origin="f:1"), "text")
    with pytest.raises(DataError, match=r"map the columns"):
        adapt(EXAMPLES["preference"], "chat")


# --- whatever comes ------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["user", "gpt", "function_call", "tool", "system", "<image>", "<think>", "</think>a", CALL, "[{}]", "{", "text", "image_url"]
)  # fmt: skip
KEYS = st.sampled_from(
    ["from", "value", "role", "content", "tool_calls", "function", "name", "arguments", "id", "type", "text", "image_url",
     "url", "path", "bytes", "train", "weight", "reasoning", "thinking", "function_call", "input_audio", "data", "format"]
) | st.text(max_size=3)  # fmt: skip
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
RICH: dict[str, list[Row]] = {
    "openai": [{
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x.png"}}]},
            {"role": "assistant", "content": "b", "reasoning": "hm", "weight": 0,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "1", "name": "f"},
            {"role": "assistant", "content": "<think>hm</think>b"},
        ],
        "tools": [DESCRIBED], "kto_tag": True,
    }],
    "sharegpt": [share(("human", "<image>a"), ("function_call", CALL), ("observation", "3"), ("gpt", "b"),
                       system="s", tools="[]", images=["x.png"])],
    "alpaca": [{"instruction": "a", "output": "b", "history": [["a", "b"]], "tools": "[]", "images": [{"path": "x.png"}]}],
    "preference": [{"prompt": "a", "chosen": "b", "rejected": "c", "system": "s", "images": "x.png"}],
}  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn, name: str) -> Row:
    """A sound row of the format with one or two values, anywhere in it, replaced by anything or taken out."""
    row: Row = copy.deepcopy(draw(st.sampled_from([*TYPICAL[name], *RICH.get(name, [])])))
    for _ in range(draw(st.integers(0, 2))):
        places = list(places_in(row))
        if places:
            holder, key = draw(st.sampled_from(places))
            if draw(st.booleans()):
                holder[key] = draw(anything)
            else:
                del holder[key]
    return row


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in a JSON value."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places_in(inner)


def rows_of(name: str) -> st.SearchStrategy[Row]:
    """Spoiled rows of the format, and rows with anything in its columns."""
    own = sorted(set(load(FORMATS, name).ROLES.values()))
    return spoiled(name) | st.dictionaries(st.sampled_from(own), anything, max_size=4)


@pytest.mark.parametrize("name", names(FORMATS))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), ranking=st.booleans())
def test_arbitrary_rows_are_read_or_refused(name: str, data: st.DataObject, ranking: bool) -> None:
    """No JSON value makes a format raise anything but DataError; what it gives, `adapt` gives on or refuses with a mend."""
    row = data.draw(rows_of(name))
    plugin = load(FORMATS, name)
    assert plugin.detect(row) is None or isinstance(plugin.detect(row), str)
    try:
        example = plugin.convert(row, "f:1", FieldMap(ranking=ranking))
    except DataError as error:
        assert error.message.startswith("f:1") and error.hint
        return
    assert isinstance(example, tuple(KINDS.values())) and example.origin == "f:1"
    for kind in KINDS:
        try:
            adapt(example, kind)
        except DataError as error:
            assert error.message.startswith("f:1") and error.hint


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(anything | st.sampled_from(names(FORMATS)).flatmap(rows_of), max_size=2), name=st.sampled_from([None, *names(FORMATS)]))  # fmt: skip
def test_arbitrary_rows_are_told_apart_or_refused(rows: list[Any], name: str | None) -> None:
    try:
        found, reason = detect([(f"f:{i}", row) for i, row in enumerate(rows, 1)], FieldMap(), name)
    except DataError:
        return
    assert found in names(FORMATS) and reason
