"""The Modelfile of a model holds the template that says what its own says, tools and thinking included."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFWriter

from tunesmith.config.progress import SILENT, Silent
from tunesmith.export.go_capabilities import capabilities
from tunesmith.export.go_template import render_as_ollama
from tunesmith.export.modelfile import Modelfile, parse
from tunesmith.render.named import named
from tunesmith.verbs.gguf import modelfile_for, write_modelfile
from tunesmith.verbs.targets import target_of

NO_FORM = "{% for m in messages %}{{ loop.index }} {{ m.content }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "claims"),
    [
        (named("qwen3").text, ("completion", "tools", "thinking")),
        (named("qwen2.5").text, ("completion", "tools")),
        (named("alpaca").text, ("completion",)),
        (NO_FORM, None),
    ],
)
def test_the_modelfile_of_a_model(template: str, claims: tuple[str, ...] | None, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content, reason = modelfile_for(target_of(str(folder), SILENT), folder, file)
    stops = content.parameters.get("stop", [])
    assert "<|im_end|>" in stops and len(set(stops)) == len(stops)
    if claims is None:
        assert content.template is None and "no family fits" in reason
        return
    assert content.template is not None and capabilities(content.template) == claims, reason
    assert "Hi" in render_as_ollama(content.template, [{"role": "user", "content": "Hi"}])


def test_what_the_format_cannot_hold_is_left_out_and_said(tmp_path: Path) -> None:
    """Ollama drops no-break and ideographic spaces when it reads a Modelfile: the licence and the system prompt are not changed in
    silence, the file says that they are missing, and what is sent over the network has them."""
    place, said = tmp_path / "Modelfile", Said()
    whole = Modelfile(
        "./m.gguf", template="{{ .Prompt }}", system="你好\u3000。", license="©\u00a02026", parameters={"top_k": 5}
    )
    left_out = write_modelfile(place, whole, said, place)
    assert [line.split()[0] for line in left_out] == ["LICENSE", "SYSTEM"] and len(said.lines) == 2
    text = place.read_text(encoding="utf-8")
    assert text.startswith("# LICENSE holds the character U+00A0") and "# SYSTEM holds" in text
    assert parse(text) == replace(whole, system=None, license=None)
    assert (
        write_modelfile(place, replace(whole, license="MIT"), said, place) == left_out[1:]
        and parse(place.read_text()).license == "MIT"
    )
    assert write_modelfile(place, replace(whole, license=None, system="x"), said, place) == ()


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
