"""The Modelfile of a model holds the template that says what its own says, tools and thinking included."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from tunesmith.config.progress import SILENT
from tunesmith.export.go_capabilities import capabilities
from tunesmith.export.go_template import render_as_ollama
from tunesmith.render.named import named
from tunesmith.verbs.gguf import modelfile_for
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
