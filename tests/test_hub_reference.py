"""The grammar of references: what each form means, what is refused, and that writing and reading are inverse."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.config.errors import ReferenceNotFoundError, UserError
from tunesmith.hub.reference import AmbiguousReferenceError, Reference, hub_order, parse


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/a", Reference("path", "/models/a")),
        ("./a/", Reference("path", "./a")),
        ("../a", Reference("path", "../a")),
        ("~/a", Reference("path", "~/a")),
        (".", Reference("path", ".")),
        ("/", Reference("path", "/")),
        ("/models/c++", Reference("path", "/models/c++")),
        ("/models/c++model", Reference("path", "/models/c++model")),
        ("hf:org/name", Reference("hf", "org/name")),
        ("hf:org/name@refs/pr/1", Reference("hf", "org/name", revision="refs/pr/1")),
        ("ms:Qwen/Qwen3-0.6B@master", Reference("ms", "Qwen/Qwen3-0.6B", revision="master")),
        ("org/name@v1.0", Reference("hub", "org/name", revision="v1.0")),
        ("hf:org/name/q/m-Q8_0.gguf@main", Reference("hf", "org/name", revision="main", file="q/m-Q8_0.gguf")),
        ("org/name/m.gguf", Reference("hub", "org/name", file="m.gguf")),
        ("demo", Reference("demo")),
        ("demo:", Reference("demo")),
        (" demo ", Reference("demo")),
        ("run:2026-01-02-sft", Reference("run", "2026-01-02-sft")),
        ("run:试验-1@step-200", Reference("run", "试验-1", point="step-200")),
        ("run:a@best", Reference("run", "a", point="best")),
        ("run:a@base", Reference("run", "a", point="base")),
        ("run:a@last", Reference("run", "a", point="last")),
        ("ollama:my-model:7b", Reference("ollama", "my-model:7b")),
        ("ollama:hf.co/org/name:Q4_K_M", Reference("ollama", "hf.co/org/name:Q4_K_M")),
        ("http://[::1]:8000/v1#a/b:c", Reference("url", "a/b:c", url="http://[::1]:8000/v1")),
        ("https://h/v1#a+b", Reference("url", "a+b", url="https://h/v1")),
        ("demo+run:a@best", Reference("demo", adapter=Reference("run", "a", point="best"))),
        ("hf:o/n@main+./x", Reference("hf", "o/n", revision="main", adapter=Reference("path", "./x"))),
        ("/a+/b", Reference("path", "/a", adapter=Reference("path", "/b"))),
        ("/a+b+./c", Reference("path", "/a+b", adapter=Reference("path", "./c"))),
        ("demo+./x*-0.5", Reference("demo", adapter=Reference("path", "./x", weight=-0.5))),
        (
            "demo+./x*0.25+run:a@best+hf:o/n*1e-3",
            Reference(
                "demo",
                adapter=Reference(
                    "path",
                    "./x",
                    weight=0.25,
                    adapter=Reference("run", "a", point="best", adapter=Reference("hf", "o/n", weight=0.001)),
                ),
            ),
        ),
    ],
)
def test_forms(text: str, expected: Reference) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a\nb", "control"),
        ("./a\0b", "control"),
        ("hf:name", "org/name"),
        ("hf:../name", "not a model's name"),
        ("hf:org/..", "not a model's name"),
        ("hf:/org/name", "org/name"),
        ("hf:org/na--me", "'--'"),
        ("hf:org/name.git", ".git"),
        ("hf:org/" + "n" * 96, "96"),
        ("hf:órg/name", "letters"),
        ("hf:org/name@", "revision"),
        ("hf:org/name@a..b", "revision"),
        ("hf:org/name@-x", "revision"),
        ("hf:org/name@/x", "revision"),
        ("hf:org/name@a b", "revision"),
        ("hf:org/name@x.lock", "revision"),
        ("hf:org/name/../x.gguf", "file"),
        ("hf:org/name/config.json", "file"),
        ("run:", "run"),
        ("run:../x", "run"),
        ("run:.x", "run"),
        ("run:a@step-x", "point"),
        ("run:a@step-01", "point"),
        ("run:a@", "point"),
        ("ollama:", "Ollama"),
        ("ollama:a/../b", "Ollama"),
        ("http://h/v1", "no model"),
        ("http://h/v1#", "no model"),
        ("http://#m", "address"),
        ("http://h:port/#m", "address"),
        ("https://me:secret@h/v1#m", "password"),
        ("ollama:a+./b", "no adapter"),
        ("http://h/v1#m+run:a", "no adapter"),
        ("demo+ollama:x", "not an adapter"),
        ("demo+./a+./b*0", "other than 0"),
        ("demo+./a*inf", "other than 0"),
        ("demo+./a*2+ollama:b", "not an adapter"),
        ("demo+what", "'what'"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert words in caught.value.message
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_existing_bare_path_and_names_with_plus(empty_folder: Path) -> None:
    (empty_folder / "mine").mkdir()
    (empty_folder / "a+b").mkdir()
    (empty_folder / "x").mkdir()
    assert parse("mine") == Reference("path", "./mine")
    assert parse("a+b") == Reference("path", "./a+b")
    assert parse("a+b+x") == Reference("path", "./a+b", adapter=Reference("path", "./x"))
    assert parse("mine").path == empty_folder / "mine"


def test_ambiguity_names_both_readings(empty_folder: Path) -> None:
    (empty_folder / "demo").mkdir()
    (empty_folder / "org" / "name").mkdir(parents=True)
    with pytest.raises(AmbiguousReferenceError, match=r"two readings.*\./demo.*built-in") as caught:
        parse("demo")
    assert "./demo" in str(caught.value.hint) and "demo:" in str(caught.value.hint)
    with pytest.raises(AmbiguousReferenceError, match=r"\./org/name.*on a hub") as caught:
        parse("org/name")
    assert "./org/name" in str(caught.value.hint) and "hf:org/name" in str(caught.value.hint)
    with pytest.raises(AmbiguousReferenceError):
        parse("demo+./x")
    assert parse("./demo").kind == "path" and parse("demo:").kind == "demo" and parse("hf:org/name").kind == "hf"


def test_unknown_words_are_told_from_missing_paths() -> None:
    with pytest.raises(ReferenceNotFoundError, match="'dmeo'") as caught:
        parse("dmeo")
    assert "did you mean demo?" in str(caught.value.hint)
    with pytest.raises(ReferenceNotFoundError, match="no file or folder 'a/b/c'"):
        parse("a/b/c")
    with pytest.raises(ReferenceNotFoundError, match="no file or folder"):
        parse("model.gguf")


def test_order_of_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_HUBS", raising=False)
    assert hub_order() == ("hf", "ms")
    monkeypatch.setenv("TUNESMITH_HUBS", " ms , hf,ms")
    assert hub_order() == ("ms", "hf")
    monkeypatch.setenv("TUNESMITH_HUBS", "")
    assert hub_order() == ()
    monkeypatch.setenv("TUNESMITH_HUBS", "hf,github")
    with pytest.raises(UserError, match="github"):
        hub_order()


word = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.]{0,6}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda text: ".." not in text and not text.endswith((".git", ".lock"))
)
repo = st.builds(lambda a, b: f"{a}/{b}", word, word)
revision = st.none() | st.builds("/".join, st.lists(word, min_size=1, max_size=3))
file = st.none() | st.builds(lambda a: f"{a}.gguf", word)
hub = st.builds(Reference, st.sampled_from(["hf", "ms", "hub"]), repo, revision=revision, file=file)
path = st.builds(
    lambda start, parts: start + "/".join(parts), st.sampled_from(["/", "./", "../", "~/"]), st.lists(word, min_size=1)
)
paths = st.builds(Reference, st.just("path"), path)
point = st.none() | st.sampled_from(["best", "base", "last"]) | st.builds(lambda n: f"step-{n}", st.integers(0, 10**9))
run = st.builds(Reference, st.just("run"), word, point=point)
ollama = st.builds(lambda a, b: Reference("ollama", f"{a}:{b}"), word, word)
server = st.builds(lambda a, b, c: Reference("url", f"{b}:{c}", url=f"https://{a}:8000/v1"), word, word, word)
whole = st.one_of(hub, paths, run, st.just(Reference("demo")))
adapted = st.builds(
    lambda base, adapter: Reference(base.kind, base.name, base.revision, base.file, base.point, base.url, adapter),
    whole,
    st.one_of(hub, paths, run),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(whole, ollama, server, adapted))
def test_round_trip(reference: Reference) -> None:
    assert parse(str(reference)) == reference


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30) | st.text("hfms:/.@+#~demoruna1-", max_size=30))
def test_any_text_is_a_reference_or_a_user_error_with_a_hint(text: str) -> None:
    try:
        reference = parse(text)
    except UserError as error:
        assert error.hint
    else:
        assert parse(str(reference)) == reference


def test_a_gguf_that_is_there_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``folder/name.gguf`` as an export prints it: no hub calls a model so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "x-Q8_0.gguf").write_bytes(b"GGUF")
    found = parse("made/x-Q8_0.gguf")
    assert found.kind == "path" and found.path.samefile(tmp_path / "made" / "x-Q8_0.gguf")
