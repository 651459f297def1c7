"""Named templates equal the published ones; a run's template is chosen, kept, saved and served as one text."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template
from typer.testing import CliRunner

from model_fixtures import edit_json
from tunesmith.cli import app
from tunesmith.config.errors import RenderError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.data.example import Chat, Message
from tunesmith.models.open import open_tokenizer
from tunesmith.render.conversation import Renderer
from tunesmith.render.named import NamedTemplate, all_named, chosen, fitting, named
from tunesmith.render.stop import end_of_turn_token
from tunesmith.render.template import FILE, baked, read_template, settle
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs.run_config import config_of_run, load_config
from tunesmith.verbs.targets import renderer_of, target_of
from tunesmith.verbs.train import create, execute

NAMES = list(all_named())
ROOT = Path(__file__).parents[1]
Conversation = list[dict[str, Any]]


# --- against the published templates ---------------------------------------------------------------------------------


def call(name: str, number: str) -> dict[str, Any]:
    return {"type": "function", "id": number, "function": {"name": name, "arguments": {"city": "Zürich", "days": 2}}}


TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "It's <now>", "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("weather", "time")
]
USER, ANSWER = {"role": "user", "content": " 你好 🙂 "}, {"role": "assistant", "content": " Hello\n"}
SYSTEM = {"role": "system", "content": "Be short."}
AGAIN = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Bye"}]
CALLED = {"role": "assistant", "content": "", "tool_calls": [call("weather", "abcdef123")]}
RESULT = {"role": "tool", "content": '{"degrees": 3}', "name": "weather", "tool_call_id": "abcdef123"}
CASES: dict[str, Conversation] = {
    "plain": [USER, ANSWER],
    "system": [SYSTEM, USER, ANSWER],
    "turns": [SYSTEM, USER, ANSWER, *AGAIN, *AGAIN],
    "prompt": [USER, ANSWER, USER],
    "empty": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "tools": [SYSTEM, AGAIN[0], CALLED, RESULT, AGAIN[1]],
    "tools, no system": [AGAIN[0], CALLED, RESULT, AGAIN[1], *AGAIN],
    "thinking": [USER, {**ANSWER, "reasoning_content": "easy\n"}, AGAIN[0], {**AGAIN[1], "reasoning_content": "hard"}],
}
EOS = {"deepseek": "<｜end▁of▁sentence｜>"}
"""Published texts that write the token where ours writes eos_token."""
NO_BOS = {("chatml", "ollama/nous-hermes2-mixtral:8x7b")}
"""Published with the bos of its family in front; ChatML itself has none."""
OTHERWISE = {
    ("gemma", "ollama/gemma2:2b"): {
        "system",
        "turns",
    },  # Gemma 2 refuses system prompts; ours has Gemma 3's form for them
    ("chatml", "ollama/nous-hermes2-mixtral:8x7b"): {"tools", "tools, no system"},  # drops the tools it is given
    ("chatml", "trl/qwen2_5"): {"plain", "prompt", "empty", "tools, no system"},  # adds a system prompt of its own
    ("mistral-v7-tekken", "ollama/mistral-small:24b"): {"tools", "tools, no system"},  # has no form for tools
    ("mistral-v1", "mistral-common/v1"): {
        "empty"
    },  # Mistral refuses empty answers; whether they are wanted is the data's affair
    ("mistral-v3", "mistral-common/v3"): {"empty"},
    ("mistral-v3-tekken", "mistral-common/v3-tekken"): {"empty"},
    ("mistral-v7-tekken", "mistral-common/v7-tekken"): {"empty"},
    ("glm4", "ollama/glm4:9b"): {"empty"},  # leaves empty turns out
    ("deepseek", "trl/deepseekv3"): {"prompt"},  # begins answers with <think>, as its R1 models do
}
"""Cases in which the published text says something else, on purpose."""


def difference(name: str, case: str, text: str) -> str:
    """Our text as the family publishes it."""
    if (
        name == "glm4" and case != "prompt"
    ):  # theirs stops before the token that ends the last answer; ours has it learned
        assert text.endswith("<|user|>")
        return text.removesuffix("<|user|>")
    return text


def authority(name: str) -> str:
    """The Jinja text of a published template; the test is skipped where its package cannot be had."""
    if name == "mistral-common/v7-tekken":
        return mistral_v7_tekken()
    if importlib.util.find_spec("published") is None:
        pytest.skip("tests/published.py, which reads the published templates, is not here")
    import published

    try:
        return str(published.by_name(name).jinja)
    except KeyError:
        pytest.skip(f"{name}: {published.missing().get(name.partition('/')[0], 'not in its package any more')}")


def mistral_v7_tekken() -> str:
    generator = pytest.importorskip("mistral_common.integrations.chat_templates.chat_templates")
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    return str(
        generator.generate_chat_template(
            spm=False, tokenizer_version=TokenizerVersion.v7, image_support=False, audio_support=False, thinking_support=False,
            default_system_prompt=None, plain_thinking_support=False, use_special_token_variables=True,
            model_settings_fields=None, reasoning_effort_values=None, reasoning_effort_default=None,
        )
    )  # fmt: skip


def text_of(template: str, case: str, bos: str = "<s>", eos: str = "</s>", **variables: Any) -> str:
    messages = CASES[case]
    tools = TOOLS if case.startswith("tools") else None
    generation = messages[-1]["role"] != "assistant"
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=template, tools=tools, add_generation_prompt=generation,
        bos_token=bos, eos_token=eos, **variables,
    )  # fmt: skip
    return str(rendered[0])


def cases_of(template: NamedTemplate) -> list[str]:
    kept = ["plain", "system", "turns", "prompt", "empty"]
    kept += ["tools", "tools, no system"] if template.tools != "no" and "tools" not in template.unchecked else []
    return [*kept, *(["thinking"] if template.thinking != "no" and "thinking" not in template.unchecked else [])]


COMPARED = [
    (name, other, case)
    for name, template in all_named().items()
    for other in template.checked
    for case in cases_of(template)
    if case not in OTHERWISE.get((name, other), set())
]


@pytest.mark.parametrize(("name", "other", "case"), COMPARED)
def test_it_renders_what_the_family_publishes(name: str, other: str, case: str) -> None:
    eos = EOS.get(name, "</s>")
    bos = "" if (name, other) in NO_BOS else "<s>"
    published = text_of(authority(other), case, bos, eos)
    if other == "ollama/deepseek-v2.5:236b":
        published = published.lstrip(" ")  # its source is indented without care
    if other == "ollama/phi4:14b" and case == "prompt":
        assert published.endswith("assistant<|im_sep|>")  # always written after a question
    assert difference(name, case, text_of(named(name).text, case, bos, eos)) == published


@pytest.mark.parametrize("thinking", [True, False])
def test_qwen3_without_thinking_is_the_published_one(thinking: bool) -> None:
    other = authority("trl/qwen3")
    for case in ("prompt", "thinking"):
        ours = text_of(named("qwen3").text, case, enable_thinking=thinking)
        assert ours == text_of(other, case, enable_thinking=thinking)
    assert text_of(baked(named("qwen3").text, {"enable_thinking": False}), "prompt").endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_out_in_silence(name: str) -> None:
    """Tools, calls and thinking either stand in the text, or the template refuses them."""
    template = named(name)
    for case, words, supported in (
        ("tools", ["weather", "Zürich", "degrees"], template.tools != "no"),
        ("thinking", ["hard"], template.thinking != "no"),
    ):
        if supported:
            assert all(word in text_of(template.text, case) for word in words)
        else:
            with pytest.raises(Exception, match=r"no form|no place"):
                text_of(template.text, case)
    stranger = [{"role": "stranger", "content": "x"}, ANSWER]
    with pytest.raises(Exception, match=r"no role|must alternate"):
        render_jinja_template(conversations=[stranger], chat_template=template.text, bos_token="", eos_token="</s>")


def test_the_table_in_the_docs_is_generated() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = generate.TEMPLATES.read_text(encoding="utf-8")
    assert page == generate.templates(), "run: python docs/generate.py"
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert rows.keys() == all_named().keys()
    for name, template in all_named().items():
        assert ("**unverified**" in rows[name]) == (not template.checked or bool(template.unchecked))


# --- training with each ----------------------------------------------------------------------------------------------


def tokenizer_with(*tokens: str, bos: str | None = None, eos: str | None = None, pieces: Sequence[str] = ()) -> Any:
    """A byte tokenizer without a template, with these special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces]
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [t for t in dict.fromkeys([bos, eos, *tokens]) if t]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def tokenizer_for(template: NamedTemplate) -> Any:
    own = [t for t in template.tokens if t not in ("bos_token", "eos_token")]
    return tokenizer_with(*own, bos="<s>", eos="</s>", pieces=template.pieces)


@pytest.mark.parametrize("name", NAMES)
def test_answers_and_their_end_are_learned(name: str) -> None:
    template = named(name)
    renderer = Renderer(tokenizer_for(template), template=settle(tokenizer_for(template), name).text)
    end = "</s>" if template.end_of_turn == "eos_token" else template.end_of_turn
    assert (end_of_turn_token(renderer) or (0, ""))[1] == end
    chat = Chat(
        (Message("user", "One?"), Message("assistant", "Eins"), Message("user", "Two?"), Message("assistant", "Zwei"))
    )
    rendered = renderer.render(chat)
    learned = renderer.tokenizer.decode([i for i, m in zip(rendered.ids, rendered.mask) if m])
    assert learned.count(end) == 2 and "Eins" in learned and "Zwei" in learned
    assert "One" not in learned and "Two" not in learned
    assert rendered.ids.count(renderer.tokenizer.bos_token_id) == (
        2 if name == "llama2" else template.text.count("{{- bos_token -}}")
    )


@pytest.mark.parametrize("name", [n for n, t in all_named().items() if t.automatic != "no"])
def test_the_vocabulary_tells_the_template(name: str) -> None:
    found, why = chosen(tokenizer_for(named(name)))
    assert found.name == name and ("plain text" in why or all(t in why for t in found.tokens if t != "eos_token"))


def test_tokens_that_are_not_single_are_an_error_that_names_them() -> None:
    tokenizer = tokenizer_with("<|im_start|>", eos="</s>")
    with pytest.raises(RenderError, match=r"chatml writes <\|im_end\|>, which is no token") as error:
        settle(tokenizer, "chatml")
    assert "alpaca" in str(error.value.hint) and "gemma" not in str(error.value.hint)
    assert chosen(tokenizer)[0].name == "alpaca"
    with pytest.raises(RenderError, match="no token that could end an answer"):
        chosen(tokenizer_with("x"))
    assert "llama2" not in [t.name for t in fitting(tokenizer)], "it writes a bos, and there is none"
    with pytest.raises(RenderError, match="kept with the model writes"):
        settle(tokenizer, None, frozen=named("chatml").text)


def test_without_bos_none_is_written() -> None:
    renderer = Renderer(tokenizer_with(eos="</s>"), template=named("alpaca").text)
    assert renderer.text([USER]).startswith("Below is an instruction")


@pytest.mark.parametrize(
    ("choice", "message", "hint"),
    [
        ("mistral", "there is no chat template 'mistral'", "mistral-v3, mistral-v3-tekken"),
        ("chatlm", "there is no chat template 'chatlm'", "did you mean 'chatml'"),
        ("none/own.jinja", "no such file", "data templates"),
        ("{folder}/broken.jinja", r"broken.jinja:2: not a Jinja template", "mend the line"),
        ("{folder}/latin.jinja", "cannot be read as UTF-8", "Jinja file"),
        ("{folder}/", "cannot be read", "Jinja file"),
    ],
)
def test_a_choice_that_is_none(choice: str, message: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "broken.jinja").write_text("{{ messages }}\n{% if %}")
    (tmp_path / "latin.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(RenderError, match=message) as error:
        read_template(choice.format(folder=tmp_path))
    assert hint in str(error.value.hint)


# --- template_args ---------------------------------------------------------------------------------------------------

ARGS: dict[str, Any] = {"flag": False, "words": 'a "quote", 你好\n🙂 %}', "deep": {"list": [1, 2.5, None, True]}}
ASKING = "{{ messages[0].content }}{% if flag is defined and not flag %}{{ words }}{{ deep.list }}{% endif %}{{ deep.list[3] }}"


@pytest.mark.parametrize("start", ["", "\n", "  ", "{%- if true %}x{% endif %}", "{#- note #}"])
def test_variables_written_into_a_template_render_as_if_given(start: str) -> None:
    given = text_of(start + ASKING, "plain", **ARGS)
    assert text_of(baked(start + ASKING, ARGS), "plain") == given and "🙂 %}[1, 2.5, None, True]True" in given


def test_variables_the_template_does_not_ask_for() -> None:
    with pytest.raises(RenderError, match="'enable_thinkin' is no variable") as error:
        baked(named("qwen3").text, {"enable_thinkin": False})
    assert "enable_thinking" in str(error.value.hint)
    with pytest.raises(RenderError, match="'tools' is given by the renderer"):
        baked(named("qwen3").text, {"tools": []})
    counting = "{% macro m(x) %}{{ x }}{% endmacro %}{{ varargs_of }}{% set varargs_of = 1 %}"
    assert baked(counting, {"varargs_of": 2}).startswith("{%- set varargs_of = 2 %}")


def test_the_renderer_takes_variables() -> None:
    renderer = Renderer(
        tokenizer_for(named("qwen3")), template=named("qwen3").text, template_args={"enable_thinking": False}
    )
    assert renderer.text([USER], generation=True).endswith("</think>\n\n")
    assert (
        Renderer(renderer.tokenizer, template=renderer.chat_template)
        .text([USER], generation=True)
        .endswith("</think>\n\n")
    )


# --- the whole way ---------------------------------------------------------------------------------------------------

SETTINGS = [
    "data=lantern_bay", "data.limit=12", "data.eval_share=0.1", "data.max_length=256", "train.batch=4", "train.max_steps=2",
    "train.save_every=1", "train.warmup=0", "precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_of_few_words: Path) -> Path:
    return tiny_of_few_words


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a base model: no chat template, and texts end in another token than turns."""
    folder = tmp_path_factory.mktemp("base") / "tiny-base"
    shutil.copytree(tiny, folder)
    (folder / FILE).unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, eos_token_id=0)
    return folder


def train(base: Path, *settings: str) -> RunFolder:
    return execute(create(load_config(None, [f"model={base}", *SETTINGS, *settings])), SILENT)


ASKED = [{"role": "user", "content": "Where is the lantern?"}]


def everywhere(run: RunFolder, folder: Path, *, gguf: bool = True) -> Mapping[str, str]:
    """The prompt as everybody renders it who opens what the run made: place -> text."""
    from transformers import AutoTokenizer

    from tunesmith.chat.llamacpp import LlamaCppEngine
    from tunesmith.verbs.export import export

    def by_us(name: str) -> str:
        return renderer_of(target_of(name, SILENT)).text(ASKED, generation=True)

    def by_transformers(place: Path) -> str:
        tokenizer = AutoTokenizer.from_pretrained(place)
        return str(tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True))

    merged, _ = export(run.id, "hf", SILENT, out=folder / "hf")
    assert json.loads((merged / "tokenizer_config.json").read_text())["chat_template"] == (merged / FILE).read_text()
    texts = {
        "run": by_us(run.id),
        "base of the run": by_us(f"{run.id}@base"),
        "base+adapter": by_us(f"{config_of_run(run).model.ref}+{run.checkpoint()}"),
        "checkpoint": by_transformers(run.checkpoint()),
        "merged": by_transformers(merged),
    }
    if gguf:
        file, _ = export(run.id, "gguf", SILENT, out=folder / "model.gguf", level="f16")
        with LlamaCppEngine(file) as engine:
            texts["gguf"] = AutoTokenizer.from_pretrained(merged).decode(engine.prompt(ASKED))
    return texts


@pytest.mark.slow
def test_a_base_model_gets_a_template_that_serves(base: Path, tmp_path: Path) -> None:
    run = train(base)
    assert config_of_run(run).model.template == "chatml"
    assert "vocabulary has <|im_start|>, <|im_end|>" in run.log_path.read_text()
    assert (run.path / FILE).read_text() == named("chatml").text
    texts = everywhere(run, tmp_path)
    expected = "<|im_start|>user\nWhere is the lantern?<|im_end|>\n<|im_start|>assistant\n"
    assert texts == dict.fromkeys(texts, expected)
    stops = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert open_tokenizer(base).convert_ids_to_tokens(stops) == ["<|endoftext|>", "<|im_end|>"]
    modelfile = (tmp_path / "Modelfile").read_text()
    assert "<|im_start|>" in modelfile and 'PARAMETER stop "<|im_end|>"' in modelfile


MINE = """\
{% for m in messages %}[{{ m.role }} {{ mood }}]
{{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant {{ mood }}]
{% endif %}"""


def test_a_file_of_ones_own_and_its_variables_serve(tiny: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(MINE)
    run = train(tiny, f"model.template={mine}", "model.template_args={mood: glad}")
    mine.write_text("changed")
    kept = (run.checkpoint() / FILE).read_text()
    assert kept.startswith('{%- set mood = "glad" %}') and (run.path / FILE).read_text() in kept
    texts = everywhere(run, tmp_path, gguf=False)
    assert texts == dict.fromkeys(texts, "[user glad]\nWhere is the lantern?<|im_end|>\n[assistant glad]\n")


def test_resuming_renders_as_before(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is frozen: neither an edited file nor another text of the same name in a newer version changes the run."""
    mine = tmp_path / "mine.jinja"
    mine.write_text(named("chatml").text)
    run = train(tiny, f"model.template={mine}", "train.max_steps=1")
    mine.unlink()
    more = run.config_path.read_text().replace("max_steps: 1", "max_steps: 2")
    run.config_path.write_text(more)
    execute(run, SILENT)  # the rows' hash would be another with another template: that is an error
    assert run.status().step == 2 and (run.checkpoint() / FILE).read_text() == named("chatml").text
    (run.path / FILE).write_text(MINE)
    run.config_path.write_text(more.replace("max_steps: 2", "max_steps: 3"))
    with pytest.raises(UserError, match="is not what it began with"):
        execute(run, SILENT)


def test_a_wrong_choice_makes_no_run(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="there is no chat template"):
        create(load_config(None, [f"model={tiny}", *SETTINGS, "model.template=chatlm"]))
    assert not list((tmp_path / "runs").glob("*"))


def test_the_command_lists_and_prints() -> None:
    listed = CliRunner().invoke(app, ["data", "templates"])
    assert listed.exit_code == 0 and all(f"\n{name} " in "\n" + listed.stdout for name in NAMES)
    printed = CliRunner().invoke(app, ["data", "templates", "qwen3"])
    assert printed.stdout == named("qwen3").text
