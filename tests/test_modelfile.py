"""A Modelfile says to Ollama what was meant, or is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config.errors import ExportError
from tunesmith.export.modelfile import Modelfile, parse
from tunesmith.export.ollama_parameters import PARAMETERS, checked_parameters

# Signs that decide how Ollama's parser reads a value, and some ordinary ones.
SIGNS = st.text(alphabet=st.sampled_from(list('"""\'`\\ \t\n\r#{}ab.|<>é你🙂')), max_size=30)
ANY = st.text(max_size=40)
VALUES: dict[type, st.SearchStrategy[Any]] = {
    float: st.floats(0, 1, allow_nan=False),
    int: st.integers(1, 2**40),
    bool: st.booleans(),
    list: st.lists(st.text(alphabet=list('<|im_end>"\n 你'), min_size=1, max_size=8), min_size=1, max_size=3),
}
PARAMETER_SETS = st.fixed_dictionaries({}, optional={name: VALUES[kind.type] for name, kind in PARAMETERS.items()})


@given(
    template=st.none() | SIGNS,
    system=st.none() | SIGNS | ANY,
    license_=st.none() | SIGNS,
    parameters=PARAMETER_SETS,
    messages=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), SIGNS), max_size=3),
)
def test_what_is_written_is_read_back_or_refused(
    template: str | None, system: str | None, license_: str | None, parameters: dict[str, Any], messages: list[Any]
) -> None:
    talk = [{"role": role, "content": content} for role, content in messages]
    file = Modelfile("./model.gguf", template, system, parameters, license_, talk)
    try:
        text = file.render()
    except ExportError as error:
        assert "drops" in error.message or '"""' in error.message
        assert error.hint
        return
    assert parse(text) == file
    assert (
        parse(text.replace("\nPARAMETER", "\n\n# a remark\nPARAMETER")) == file or "PARAMETER" in f"{system}{template}"
    )


def test_a_whole_file() -> None:
    file = Modelfile(
        "./my model.gguf",
        template='{{ .System }}\n"quoted"',
        system="Be brief.",
        parameters={"stop": ["<|im_end|>", '"'], "temperature": 1, "num_ctx": 4096, "use_mmap": False},
        license="Apache-2.0\n\nwith a second line",
        messages=[{"role": "user", "content": "hi"}],
    )
    assert file.render() == (
        "FROM ./my model.gguf\n"
        'TEMPLATE """{{ .System }}\n"quoted""""\n'
        'SYSTEM "Be brief."\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop """""""\n'
        "PARAMETER temperature 1.0\n"
        "PARAMETER num_ctx 4096\n"
        "PARAMETER use_mmap false\n"
        'MESSAGE user "hi"\n'
        'LICENSE "Apache-2.0\n\nwith a second line"\n'
    )


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ("FROM a\nSYSTEM Be   brief.  \n", "Be   brief."),
        ("from a\nsystem Be brief.", "Be brief."),
        ('FROM a\nSYSTEM """one\n"two"\n"""\n', 'one\n"two"\n'),
        ('FROM a\nSYSTEM """x""" y"""\n', 'x""" y'),
        ("FROM a\nSYSTEM 'x'\n", "'x'"),
        ("FROM a\nSYSTEM C:\\new\\table\n", "C:\\new\\table"),
        ("\ufeffFROM a\r\nSYSTEM x\r\n", "x"),
        ('FROM a\nSYSTEM "👩\u200d👧\u3000\u00a0x"\n', "👩👧x"),
    ],
)
def test_reading_as_ollama_reads(text: str, system: str) -> None:
    """Cases from parser_test.go's rules: bare values are trimmed, no escapes, unprintable characters are lost."""
    assert parse(text).system == system


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ('a """\nb', 'line that ends in """'),
        ('a """ \t\nb', 'line that ends in """'),
        ("no\u00a0break", "U+00A0 (NO-BREAK SPACE)"),
        ("全角\u3000空格", "U+3000 (IDEOGRAPHIC SPACE)"),
        ("👩\u200d👧", "U+200D (ZERO WIDTH JOINER)"),
        ("\x00", "U+0000"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(system: str, words: str) -> None:
    with pytest.raises(ExportError, match=re.escape(words)) as caught:
        Modelfile("a", system=system).render()
    assert caught.value.hint is not None
    assert "running Ollama" in caught.value.hint


def test_adapters_stand_behind_the_base() -> None:
    paths = ("./my adapter.gguf", './a "b".gguf')
    text = Modelfile("llama3.2:1b", adapters=paths, system="x").render()
    assert text.splitlines()[:2] == ["FROM llama3.2:1b", "ADAPTER ./my adapter.gguf"]
    assert parse(text).adapters == paths


@pytest.mark.parametrize(
    "text", ["SYSTEM x\n", 'FROM a\nSYSTEM """x\n', "FROM a\nNONSENSE x\n", "FROM\n", "FROM a\nDRAFT b\n"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="Modelfile"):
        parse(text)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"temperature": "hot"}, "'temperature' is 'hot', it must be a number"),
        ({"temperature": True}, "must be a number"),
        ({"temperature": float("nan")}, "finite"),
        ({"temperature": -0.1}, "at least 0"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"num_ctx": 2048.5}, "a whole number"),
        ({"num_ctx": "2048"}, "a whole number"),
        ({"num_ctx": 0}, "at least 1"),
        ({"seed": 2**63}, "64 bits"),
        ({"stop": [1]}, "a list of texts"),
        ({"stop": ["a", ""]}, "none empty"),
        ({"use_mmap": 1}, "true or false"),
        ({"mirostat": 1}, "no longer reads"),
        ({"temprature": 0.5}, "did you mean 'temperature'"),
        ({"bogus": 0.5}, "knows no parameter 'bogus'"),
    ],
)
def test_parameters_that_would_break_chats_are_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError) as caught:
        Modelfile("a", parameters=parameters)
    assert words in str(caught.value)
    assert caught.value.hint


def test_parameters_take_the_types_of_ollamas_json() -> None:
    checked = checked_parameters({"stop": "x", "temperature": 0, "num_ctx": 2048, "seed": -1})
    assert checked == {"stop": ["x"], "temperature": 0.0, "num_ctx": 2048, "seed": -1}
    assert isinstance(checked["temperature"], float)
    assert checked_parameters({"stop": []}) == {}


def test_from_and_roles_are_needed() -> None:
    with pytest.raises(ExportError, match="FROM"):
        Modelfile(" ")
    with pytest.raises(ExportError, match="role 'tool'"):
        Modelfile("a", messages=[{"role": "tool", "content": "x"}])
