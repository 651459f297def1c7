"""The proof of a deployment: it passes for the model that was trained, and each damage turns its own check red, and no other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ending_run import ending_run
from gguf_mutations import disturb, set_metadata
from ollama_models import Runner
from ollama_server import FakeOllama, serving
from small_llama import small_model
from tunesmith.config.errors import ServerError, UserError
from tunesmith.config.progress import SILENT
from tunesmith.evaluate.tasks.comparison import Comparison
from tunesmith.export.deploy_report import Proof
from tunesmith.export.modelfile import parse
from tunesmith.export.ollama_shown import REWRITTEN, WRITTEN_ANEW
from tunesmith.runs.folder import RunFolder
from tunesmith.verbs import proof as proof_of_numbers
from tunesmith.verbs.compare import run_comparison
from tunesmith.verbs.deploy import Deployment, check_address, deploy, read_anew
from tunesmith.verbs.gguf import GgufExport, gguf
from tunesmith.verbs.proof import Evidence
from tunesmith.verbs.prove import ProofFailed, Proving
from tunesmith.verbs.reference import MergedReference
from tunesmith.verbs.targets import Target, target_of

REAL = os.environ.get("OLLAMA_HOST")
"""Before tests are kept from the servers of this machine."""
PASSED = dict.fromkeys(range(1, 7), "passed")


@dataclass
class Ready:
    """A run whose GGUF was made and compared once for all tests."""

    run: RunFolder
    target: Target
    made: GgufExport
    evidence: Evidence

    def deploy(self, url: str | None, name: str = "m:x", *, made: GgufExport | None = None, **how: Any) -> Deployment:
        return deploy(str(self.run.path), name, SILENT, url=url, proved=(made or self.made, self.evidence), **how)

    def copy(self, folder: Path) -> GgufExport:
        """The export with a file of its own that may be damaged."""
        return replace(self.made, file=Path(shutil.copy(self.made.file, folder / "copy.gguf")))


def ready_of(run: RunFolder, target: Target) -> Ready:
    """Compared while it was made, as every export is."""
    reference = MergedReference(target, SILENT)
    made = gguf(target, SILENT, level="f16", reference=reference)
    return Ready(run, target, made, reference.evidence)


SYSTEM = "You answer with one word: 只答一个词。"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama with a small tokenizer of SmolLM2's kind, and its chat template: all steps of a proof take a moment."""
    return small_model(tmp_path_factory.mktemp("small") / "small-llama")


@pytest.fixture(scope="module")
def ready(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    run = ending_run(small, tmp_path_factory.mktemp("runs"), system=SYSTEM)
    target = target_of(str(run.path), SILENT)
    return ready_of(run, target)


@pytest.fixture(autouse=True)
def no_server_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # nobody listens there


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeOllama]:
    with serving(tmp_path / "blobs", Runner()) as state:
        yield state


def states(proof: Proof | None) -> dict[int, str]:
    assert proof is not None
    return {check.number: check.state for check in proof.checks}


def failed(proof: Proof | None) -> set[int]:
    return {number for number, state in states(proof).items() if state == "failed"}


def words(proof: Proof | None, number: int) -> str:
    assert proof is not None
    return "\n".join(proof.checks[number - 1].lines())


def test_the_trained_model_passes(ready: Ready, server: FakeOllama) -> None:
    done = ready.deploy(server.url, "me/m:x")
    assert states(done.proof) == PASSED
    assert list(server.models) == ["me/m:x"], "the model on trial is gone"
    assert done.report is not None and done.report.answer.strip(), "drawn at random, from a question it has not learned"
    assert " conversations, as the server renders them; token counts equal" in words(done.proof, 1)
    assert "in 8 of 8 texts" in words(done.proof, 2)
    assert "trained → merged" in words(done.proof, 3) and "lower bound" in words(done.proof, 3)
    assert "8 of 8 greedy answers to held-out rows end within 32 tokens in Ollama" in words(done.proof, 4)
    assert "num_ctx 256" in words(done.proof, 5) and "context length 256" in words(done.proof, 5)
    assert "as sent: template, system" in words(done.proof, 5)
    comparison = done.proof.comparison if done.proof is not None else None
    assert comparison is not None and [c.name for c in comparison.candidates] == ["base", "tuned", "in Ollama"]
    base, tuned, there = comparison.candidates
    assert tuned.answers == there.answers and base.answers != tuned.answers
    assert base.loss is not None and tuned.loss is not None and there.loss == pytest.approx(tuned.loss, abs=0.01)
    assert tuned.loss < base.loss - 1
    report = json.loads((ready.run.artifacts / "deploy_report.json").read_text(encoding="utf-8"))
    assert [check["state"] for check in report["checks"]] == ["passed"] * 6
    assert report["server"]["digest"] == report["sha256"] and report["parity"]["mean_kl"] < 1e-3
    page = (ready.run.artifacts / "deploy_report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|src=|href=|url\(|@import", page), "nothing is loaded from anywhere"
    assert page.count("✓") == 6 and "what it means" not in page.lower()
    assert "✓ 4. answers end" in (ready.run.artifacts / "deploy_report.md").read_text(encoding="utf-8")
    the_one_system_prompt_of_the_training_is_the_models(ready, server, comparison)


def the_one_system_prompt_of_the_training_is_the_models(ready: Ready, server: FakeOllama, found: Comparison) -> None:
    """Asked without a system prompt, the deployed model is asked as in training; so are the models in comparisons."""
    assert json.loads((ready.run.path / "rows.json").read_text(encoding="utf-8"))["system"] == SYSTEM
    assert ready.made.content.system == SYSTEM
    assert parse(ready.made.modelfile.read_text(encoding="utf-8")).system == SYSTEM
    (model,) = server.models.values()
    asked = [{"role": "user", "content": "Hi"}]
    assert model["system"] == SYSTEM
    assert server.prompt(model, asked, {}) == target_renderer(ready.target).text(
        [{"role": "system", "content": SYSTEM}, *asked], generation=True
    )
    assert all(question.messages[0]["content"] == SYSTEM for question in found.questions)
    for given, first in ((None, SYSTEM), ("Be brief.", "Be brief."), ("", "Hi")):
        result, _ = run_comparison([str(ready.run.path)], SILENT, prompts=["Hi"], max_tokens=1, system=given)
        assert result.questions[0].messages[0]["content"] == first


# --- what breaks off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "number", "broken"),
    [("/api/create", 1, None), ("/api/chat", 3, 1), ("/api/generate", 2, 2), ("/api/copy", 1, None)],
)
def test_a_server_that_goes_away_leaves_what_was_found(
    ready: Ready, server: FakeOllama, path: str, number: int, broken: int | None
) -> None:
    """Its report says in which check, and what to do; the model on trial is removed where the server still answers."""
    server.breaks_at = path, number
    with pytest.raises(ServerError, match="broke while") as caught:
        ready.deploy(server.url)
    assert "deploy_report.html" in (caught.value.hint or "") and server.models == {}
    report = json.loads((ready.run.artifacts / "deploy_report.json").read_text(encoding="utf-8"))
    trial = next(body["model"] for method, _, body in server.requests if method == "DELETE")
    assert report["outcome"].startswith("Not deployed: the connection") and f"`ollama rm {trial}`" in report["outcome"]
    states = {check["number"]: check["state"] for check in report["checks"]}
    assert states[3] == "passed", "the numbers that were compared here stay"
    if broken is not None:
        assert states[broken] == states[6] == "not measured"
        assert "broke off: the connection" in report["checks"][broken - 1]["figures"][0]


def test_a_server_that_thinks_by_itself(ready: Ready, server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat template leaves thinking off when nothing is said, newer servers turn it on: told, asked as in training, no failure."""
    from tunesmith.data.example import Chat, Message
    from tunesmith.export.go_template import choose, model_template
    from tunesmith.export.ollama import OllamaServer
    from tunesmith.export.ollama_deploy import deploy as put
    from tunesmith.render.conversation import Renderer
    from tunesmith.verbs.checks import prompts, subject
    from tunesmith.verbs.checks.asked import QUESTIONS, Asked

    renderer = Renderer(target_renderer(ready.target).tokenizer, template=OFF_BY_ITSELF)
    choice = choose(lambda m, generation: renderer.text(m, generation=generation), "", model_template(renderer))
    assert choice.template is not None and "thinking" in choice.capabilities, choice.reason
    content = replace(ready.made.content, template=choice.template.text, system=None)
    monkeypatch.setattr(subject, "replace_folder", lambda *_: renderer)
    monkeypatch.setattr(subject, "trained_system", lambda *_: None)
    rows = Asked((Chat((Message("user", QUESTIONS[0]),)),), 32, "", "", False)
    with (
        OllamaServer(server.url) as client,
        subject.opened(ready.target, replace(ready.made, content=content), rows) as found,
    ):
        put(client, ready.made.file, "m", content)
        assert found.think is False
        for by_itself, shown in ((True, True), (True, False), (False, True)):
            server.thinks_by_itself, server.knows_debug_render = by_itself, shown
            told, _ = prompts.check(found, subject.Served(client, "m", client.show("m") or {}, {}), SILENT)
            assert told.state == "passed", told.figures
            assert any("send `think: false`" in line for line in told.figures) == by_itself


OFF_BY_ITSELF = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_a_gguf_that_is_deployed_anew_is_told_so(ready: Ready) -> None:
    from tunesmith.config.home import models_folder

    base = replace(ready.target.base, folder=models_folder() / "from-gguf" / "x-1")
    anew = replace(ready.target, base=base, learned=None)
    assert "rounded anew to Q8_0" in (read_anew("x.gguf", anew, "q8_0") or "")
    assert read_anew("run", replace(anew, learned=base.folder), "q8_0") is None
    assert read_anew("run", ready.target, "q8_0") is None


# --- each damage turns its own check red, and no other -------------------------------------------------------------


def other_template(made: GgufExport) -> GgufExport:
    """As if the TEMPLATE forgot the line break after each turn."""
    assert made.content.template is not None
    text = made.content.template.replace("<|im_end|>\n", "<|im_end|>")
    assert text != made.content.template
    return replace(made, content=replace(made.content, template=text))


def without_system(made: GgufExport) -> GgufExport:
    return replace(made, content=replace(made.content, system=None))


def without_stop(made: GgufExport) -> GgufExport:
    kept = {name: value for name, value in made.content.parameters.items() if name != "stop"}
    return replace(made, content=replace(made.content, parameters=kept))


def never_ends(server: FakeOllama) -> None:
    assert server.runner is not None
    server.runner.ends = False


def set_on_upload(key: str, old: Any, new: Any) -> Callable[[FakeOllama], None]:
    return lambda server: setattr(server, "change_upload", lambda path: set_metadata(path, key, old, new))


def disturbed(server: FakeOllama) -> None:
    server.change_upload = lambda path: disturb(path, "blk.1.ffn_down.weight", 1.0)


def hides_prompts(server: FakeOllama) -> None:
    server.knows_debug_render = False


def shows(**fields: Any) -> Callable[[FakeOllama], None]:
    return lambda server: setattr(server, "change_shown", fields)


def forgets_num_ctx(server: FakeOllama) -> None:
    server.drop_parameters = ("num_ctx",)


def nothing(server: FakeOllama) -> None: ...


def unchanged(made: GgufExport) -> GgufExport:
    return made


DAMAGES: dict[str, tuple[Callable[[FakeOllama], None], Callable[[GgufExport], GgufExport], int, str]] = {
    "template": (nothing, other_template, 1, "in training '…"),
    "template, on a server that hides prompts": (hides_prompts, other_template, 1, "tokens instead of"),
    "beginning token twice": (
        set_on_upload("tokenizer.ggml.add_bos_token", False, True),
        unchanged,
        1,
        "beginning token",
    ),
    "pre-tokenizer": (set_on_upload("tokenizer.ggml.pre", "smollm", "falcon"), unchanged, 2, "the server reads"),
    "weights": (disturbed, unchanged, 3, "→ server"),
    "stop": (never_ends, without_stop, 4, "end in this process"),
    "capability": (shows(capabilities=[]), unchanged, 5, "has completion, the server does not say so"),
    "capability too many": (shows(capabilities=["completion", "tools"]), unchanged, 5, "has no place for that"),
    "num_ctx": (forgets_num_ctx, unchanged, 5, "its num_ctx is None, not 256"),
    "context length": (set_on_upload("llama.context_length", 256, 128), unchanged, 5, "its context length is 128"),
    "template, as the server tells it": (shows(template="y"), unchanged, 5, "its template is 'y'"),
    "system prompt, as the server tells it": (shows(system=""), unchanged, 5, "its system is ''"),
    "system prompt": (nothing, without_system, 1, "in training '…"),
}


QUICK = ("template", "pre-tokenizer", "weights", "stop", "capability", "system prompt")
"""One for each check that can be red."""


@pytest.mark.parametrize(
    "damage", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES]
)
def test_each_damage_turns_its_check_red(ready: Ready, server: FakeOllama, damage: str) -> None:
    hurt, change, number, said = DAMAGES[damage]
    hurt(server)
    old = {
        "digest": "sha256:old",
        "system": "the model that was there",
        "template": "x",
        "parameters": {},
        "license": "",
        "messages": [],
    }
    shutil.copy(ready.made.file, server.blob("sha256:old"))
    server.models["m:x"] = dict(old)
    made = change(ready.made)
    if number == 5:  # told, and no reason to serve nothing
        proof = ready.deploy(server.url, made=made).proof
        assert server.models["m:x"]["digest"] != "sha256:old"
    else:
        with pytest.raises(ProofFailed, match="The proof failed") as caught:
            ready.deploy(server.url, made=made)
        proof = caught.value.proof
        assert "answers as before" in proof.outcome
        assert server.models == {"m:x": old}
        saved = json.loads((ready.run.artifacts / "deploy_report.json").read_text(encoding="utf-8"))
        assert {c["number"] for c in saved["checks"] if c["broken"]} == failed(proof)
    also = {3} if damage == "beginning token twice" else set()  # it changes the numbers too
    assert {number} <= failed(proof) <= {number} | also
    check = proof.checks[number - 1] if proof is not None else None
    assert check is not None and check.means and check.todo
    assert said.removesuffix("…").removesuffix("'") in words(proof, number)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["pre-tokenizer", "weights"])
def test_a_damaged_file_is_never_sent(ready: Ready, server: FakeOllama, tmp_path: Path, damage: str) -> None:
    made = ready.copy(tmp_path)
    if damage == "weights":
        disturb(made.file, "blk.1.ffn_down.weight", 1.0)
    else:
        set_metadata(made.file, "tokenizer.ggml.pre", "smollm", "falcon")
    with Proving(ready.target, made, SILENT, force=damage == "weights") as proving:
        assert not proving.local(), "force does not serve other weights"
        proof = proving.record("m:x", "…", {}, None)
    assert failed(proof) == {3 if damage == "weights" else 2}
    assert made.file.exists() == (damage != "weights"), "a file of other numbers is renamed"
    if damage == "pre-tokenizer":
        with pytest.raises(ProofFailed, match="before anything was sent"):
            ready.deploy(server.url, made=made)
        assert not any(path.startswith("/api/blobs") for _, path, _ in server.requests)


@pytest.mark.slow
def test_numbers_that_are_refuted_while_it_is_made(
    ready: Ready, server: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file that answers otherwise never gets its name, and the report of the deployment says what was found."""
    monkeypatch.setattr(proof_of_numbers, "BROKEN", -1.0)
    with pytest.raises(ProofFailed, match="before anything was sent") as caught:
        deploy(str(ready.run.path), "m:x", SILENT, url=server.url, level="f32", force=True)
    assert failed(caught.value.proof) == {3} and "does not answer as the merged model does" in words(
        caught.value.proof, 3
    )
    folder = ready.run.artifacts / "gguf-f32-step-30"
    assert [p.name for p in folder.glob("*.gguf*")] == ["ending-F32.gguf.failed"] and not server.models
    saved = json.loads((ready.run.artifacts / "deploy_report.json").read_text(encoding="utf-8"))
    assert [c["number"] for c in saved["checks"] if c["broken"]] == [3]


@pytest.mark.slow
def test_force_serves_it_all_the_same(ready: Ready, server: FakeOllama) -> None:
    done = ready.deploy(server.url, made=other_template(ready.made), force=True)
    assert failed(done.proof) == {1} and list(server.models) == ["m:x"]
    assert done.proof is not None and "by force, against its proof" in done.proof.outcome


@pytest.mark.slow
def test_without_verify_nothing_is_proved(ready: Ready, server: FakeOllama) -> None:
    done = ready.deploy(server.url, made=other_template(ready.made), verify=False)
    assert done.proof is None and list(server.models) == ["m:x"]
    assert not any(body and body.get("raw") for _, _, body in server.requests)


@pytest.mark.slow
def test_an_older_server_tells_less(ready: Ready, server: FakeOllama) -> None:
    """Neither the rendered prompt nor probabilities: what cannot be measured is said, not guessed."""
    server.knows_debug_render = server.tells_logprobs = False
    done = ready.deploy(server.url)
    assert states(done.proof) == PASSED
    assert "as this server does not show what it renders" in words(done.proof, 1)
    assert "tells no probabilities" in words(done.proof, 3)


def test_a_server_that_writes_the_file_anew(ready: Ready, server: FakeOllama, tmp_path: Path) -> None:
    """From 0.30 on the digest is another; the tensors and settings it tells, and its answers, say that it is the same model. Another one is not."""
    server.rewrites = True
    done = ready.deploy(server.url)
    assert states(done.proof) == PASSED and done.report is not None
    assert REWRITTEN in done.report.checks and WRITTEN_ANEW in done.report.notes
    assert done.report.digest not in server.show("m:x")["modelfile"]
    server.change_upload = lambda file: disturb(file, "blk.1.ffn_down.weight", 1.0)
    with pytest.raises(ProofFailed) as caught:
        ready.deploy(server.url)
    assert 3 in failed(caught.value.proof), "the weights' numbers are told by answers alone"
    assert done.report.digest not in server.show("m:x")["modelfile"], "the model that answered before goes on"


# --- without a server -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_server_it_is_proved_here(ready: Ready) -> None:
    done = ready.deploy(None)
    assert states(done.proof) == PASSED | {5: "not measured"}
    assert done.report is None and done.command.startswith("ollama create m:x -f ")
    assert done.proof is not None and done.command in done.proof.outcome
    assert "in llama.cpp here" in words(done.proof, 4)
    for change in (other_template, without_system):
        with pytest.raises(ProofFailed) as caught:
            ready.deploy(None, made=change(ready.made))
        assert failed(caught.value.proof) == {1}


REFUSING = (
    "{% if messages[0].content == 'x' %}{{ raise_exception('not this') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_rows_that_the_template_refuses_are_not_asked(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were left out of the training; the proof neither asks them nor breaks on them."""
    from tunesmith.data.example import Chat, Message
    from tunesmith.render.conversation import Renderer
    from tunesmith.verbs.checks import subject
    from tunesmith.verbs.checks.asked import asked
    from tunesmith.verbs.gguf import replace_folder

    renderer = replace_folder(ready.target, ready.made.merged)
    rows = asked(ready.target, renderer, SILENT)
    refused = Chat((Message("user", "x"), Message("assistant", "y")))
    other = Renderer(renderer.tokenizer, template=REFUSING)
    monkeypatch.setattr(subject, "replace_folder", lambda *_: other)
    with subject.opened(ready.target, ready.made, replace(rows, chats=(refused, *rows.chats))) as found:
        assert found.asked.chats == rows.chats


def test_before_and_after_end_no_deployment(ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, or whatever else: check 6 proves nothing, so it is not measured and says why."""
    import torch

    from tunesmith.verbs import opening
    from tunesmith.verbs.checks import answers
    from tunesmith.verbs.checks.asked import asked
    from tunesmith.verbs.checks.subject import opened
    from tunesmith.verbs.gguf import replace_folder

    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    rows = asked(ready.target, replace_folder(ready.target, ready.made.merged), SILENT)
    with opened(ready.target, ready.made, rows) as subject:
        for error, said in (
            (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out"),
            (KeyError("nobody foresaw"), "the details are in"),
        ):

            def fail(*_: Any, error: Exception = error) -> None:
                raise error

            monkeypatch.setattr(answers, "compare", fail)
            check, comparison = answers.check(subject, None, SILENT)
            assert (check.state, comparison) == ("not measured", None) and said in check.figures[0]
        monkeypatch.setattr(opening, "free_memory", lambda _: 1000)
        assert "it needs" in answers.check(subject, None, SILENT)[0].figures[0]


def test_a_server_that_was_named_must_answer(ready: Ready) -> None:
    with pytest.raises(ServerError, match="no Ollama server answers"):
        ready.deploy("127.0.0.1:9")


@pytest.mark.slow
def test_a_model_that_never_learned_to_end_is_told_so(ready: Ready, small: Path) -> None:
    """The base answers at random: nothing was trained that should end, so nothing is refuted. As a run it would be."""
    from tunesmith.verbs.checks import endings
    from tunesmith.verbs.checks.asked import asked
    from tunesmith.verbs.checks.subject import opened
    from tunesmith.verbs.gguf import replace_folder

    base = target_of(str(small), SILENT)
    made = gguf(base, SILENT, level="f16", out=ready.run.path.parent / "base.gguf")
    rows = replace(asked(base, replace_folder(base, made.merged), SILENT), limit=16)
    assert (rows.trained, rows.source) == (False, "questions of our own")
    with opened(base, made, rows) as subject:
        assert endings.check(subject, None, SILENT).state == "not measured"
        found = endings.check(replace(subject, asked=replace(rows, trained=True)), None, SILENT)
    assert found.state == "failed" and "did not learn to" in found.todo


# --- where to -------------------------------------------------------------------------------------------------------


def test_another_machine_only_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "10.1.2.3")
    with pytest.raises(UserError, match=r"another machine, http://10\.1\.2\.3:11434") as caught:
        deploy("demo", "m", SILENT)
    assert "--url http://10.1.2.3:11434" in (caught.value.hint or "")
    check_address("10.1.2.3")
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0")
    check_address(None)


def test_the_modelfile_by_hand_gives_the_same_model(ready: Ready, server: FakeOllama) -> None:
    """What `ollama create -f Modelfile` sends is what is sent here: the file's own text, read as Ollama reads it."""
    from tunesmith.export.ollama import OllamaServer

    ready.deploy(server.url, "here", verify=False)
    read = parse(ready.made.modelfile.read_text(encoding="utf-8"))
    file = ready.made.modelfile.parent / read.from_
    with OllamaServer(server.url) as client:
        digest, sent = client.upload(file)
        client.create("by-hand", files={file.name: digest}, modelfile=read)
        here, there = client.show("here"), client.show("by-hand")
    assert sent == 0 and here == there
    assert server.models["here:latest"] == server.models["by-hand:latest"]


@pytest.mark.slow
def test_tools_are_proved_and_their_loss_is_told(tiny: Path, tmp_path: Path) -> None:
    """A chat template with tools: its TEMPLATE renders them as in training. Without their place in it, check 5 says so."""
    run = ending_run(tiny, tmp_path / "runs", "model.template=qwen2.5")
    target = target_of(str(run.path), SILENT)
    ready = ready_of(run, target)
    made = ready.made
    with serving(tmp_path / "blobs", Runner()) as server:
        done = ready.deploy(server.url)
        assert states(done.proof) == PASSED
        assert "capabilities: completion, tools" in words(done.proof, 5)
        assert any(body.get("tools") for _, path, body in server.requests if path == "/api/chat")
        assert made.content.template is not None
        lost = replace(made, content=replace(made.content, template=without_tools(made.content.template)))
        done = ready.deploy(server.url, made=lost)
        assert failed(done.proof) == {5} and "the chat template has tools" in words(done.proof, 5)


def target_renderer(target: Target) -> Any:
    from tunesmith.verbs.targets import renderer_of

    return renderer_of(target)


def without_tools(template: str) -> str:
    """The same template under another name for its tools, which nothing gives."""
    assert ".Tools" in template
    return template.replace("$.Tools", "$.Absent").replace(".Tools", ".Absent")


@pytest.mark.slow
def test_a_real_server(ready: Ready) -> None:
    """The whole deployment against the Ollama that $OLLAMA_HOST names."""
    from tunesmith.export.ollama import OllamaServer

    with OllamaServer(REAL) as server:
        if not server.alive():
            pytest.skip(f"no Ollama server answers at {server.url} (set OLLAMA_HOST to test against one)")
        try:
            done = ready.deploy(server.url, "tunesmith-test:proof")
            assert failed(done.proof) == set(), "\n".join(done.proof.checklist() if done.proof else ())
            assert not any("unproved" in name for name in server.names())
            with pytest.raises(ProofFailed) as caught:
                ready.deploy(server.url, "tunesmith-test:proof", made=other_template(ready.made))
            assert 1 in failed(caught.value.proof)
            assert server.show("tunesmith-test:proof") is not None, "the proved one stays"
        finally:
            server.remove("tunesmith-test:proof")


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_from_the_command_line(smol: Path, tmp_path: Path) -> None:
    """The base as it is, Q8_0, through `tunesmith deploy`: every line of the checklist on stdout, exit code 0.

    It was not trained here, and a model of this size does not end all greedy answers by itself: then check 4 says so and passes over it.
    """
    with serving(tmp_path / "blobs", Runner()) as there:
        done = command_line(tmp_path, "deploy", str(smol), "--name", "smol:135m", "--level", "Q8_0", "--url", there.url)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        states = {line[2]: line[0] for line in lines if line[:1] in "✓✗–" and line[1:2] == " "}
        assert states.pop("4") == "✓" or "does not end these answers by itself either" in done.stdout
        assert states == dict.fromkeys("12356", "✓")
        assert "smol:135m is at" in done.stdout


@pytest.mark.slow
def test_a_refuted_deployment_from_the_command_line(small: Path, server: FakeOllama, tmp_path: Path) -> None:
    """The list with its ✗ on stdout, what to do on stderr, exit code 2, and nothing under the name."""
    DAMAGES["pre-tokenizer"][0](server)
    done = command_line(tmp_path, "deploy", str(small), "--name", "m:x", "--level", "f16", "--url", server.url)
    assert done.returncode == 2 and "✗ 2 tokens as in training" in done.stdout, done.stdout + done.stderr
    assert "hint: " in done.stderr and "--force" in done.stderr
    assert "m:x" not in server.models


def command_line(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "TUNESMITH_PLAIN": "1"}
    command = [sys.executable, "-m", "tunesmith", *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=folder)


@pytest.mark.parametrize(("shown", "counted", "wrong"), [("<s>Hi", 3, ""), ("Hi", 3, ""), ("<s>Hi", 4, "stands there twice"), ("<s>Ho", 3, "Ho")])  # fmt: skip
def test_a_beginning_token_that_the_server_shows(shown: str, counted: int, wrong: str) -> None:
    """Some servers show it in the text they render, some do not: how often it is read is told by the number of tokens alone."""
    from tunesmith.export.go_probes import Probe
    from tunesmith.export.ollama_reply import Reply
    from tunesmith.verbs.checks import prompts

    subject: Any = SimpleNamespace(
        think=None,
        training_text=lambda *_: "<s>Hi",
        without_bos=lambda text: text.removeprefix("<s>"),
        renderer=SimpleNamespace(encode_text=lambda _: ([0, 1, 2], None)),
    )
    server = SimpleNamespace(
        rendered_prompt=lambda *_, **__: shown, chat=lambda *_, **__: Reply("", counted, 1, "length")
    )
    served: Any = SimpleNamespace(server=server, name="m")
    found = prompts.Compared()
    prompts._there(subject, served, [Probe("one", ({"role": "user", "content": "Hi"},))], found, SILENT)  # type: ignore[arg-type]
    told = {**found.differing, **{name: prompts._tokens(*counts) for name, counts in found.odd.items()}}
    assert (wrong in told["one"]) if wrong else (not told and found.equal == ["one"])
