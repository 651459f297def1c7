"""``tunesmith deploy --as adapter``: what was learned alone, put on a base that Ollama has already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.chat.ollama_api import check_name, same_model
from tunesmith.config.errors import ExportError, UserError
from tunesmith.config.files import write_json
from tunesmith.config.plugins import load as load_plugin
from tunesmith.config.progress import Progress
from tunesmith.evaluate.quality_report import plain
from tunesmith.evaluate.top_tokens import Asked, distances
from tunesmith.export.base import Report
from tunesmith.export.gguf_lora import MERGE
from tunesmith.export.modelfile import Modelfile
from tunesmith.export.ollama import OllamaServer, manual_command
from tunesmith.export.ollama_adapter import AdapterReport, check_architecture, put_adapter
from tunesmith.verbs import quantized
from tunesmith.verbs.beside import accompany, adapter_modelfile
from tunesmith.verbs.deploy import check_address
from tunesmith.verbs.merged import TARGETS, slug
from tunesmith.verbs.opening import room_to_ask
from tunesmith.verbs.probe_rows import kept_probes
from tunesmith.verbs.stopping import in_words, kept_in
from tunesmith.verbs.taken import made_from, taken_or_made
from tunesmith.verbs.targets import Target, open_weights, renderer_of, target_of

QUESTIONS = (
    "What is the capital of France?",
    "你好，你是谁？",
    "Write 12345 + 678 as a sum.",
    "Tell me about yourself.",
)
TOO_CLOSE = 0.05
"""Mean difference (nats) between base and trained model on these questions below which nothing can be told from a server's top tokens."""


@dataclass(frozen=True)
class AdapterExport:
    """The adapter as GGUF with a Modelfile; ``base``: what the GGUF of its base says of itself, ``checks``: figures of the export."""

    file: Path
    modelfile: Path
    content: Modelfile
    template_reason: str
    base: dict[str, Any]
    checks: dict[str, Any]


@dataclass(frozen=True)
class AdapterDeployment:
    """``report`` is None when no server answered; ``command`` then does the rest by hand."""

    made: AdapterExport
    report: AdapterReport | None
    command: str
    server: str


def deploy_adapter(
    text: str, name: str, on: str, progress: Progress, *, level: str = "f32", url: str | None = None
) -> AdapterDeployment:
    """Export what ``text`` learned as a GGUF LoRA, prove it in llama.cpp, put it on the server's model ``on`` as ``name``.

    Raises UserError; nothing is sent before the local checks passed, and a model called ``name`` stays as it is until the new one
    answers as the trained one.
    """
    check_name(name)
    check_name(on)
    check_address(url)
    if same_model(name, on):
        raise UserError(
            f"--name {name} is the base itself", hint="give the adapted model another name; the base stays as it is"
        )
    target = quantized.on_original(target_of(text, progress), None, progress)
    with OllamaServer(url) as server:
        there = url is not None or server.alive()
        if there and server.show(on) is None:
            raise UserError(
                f"{server.url} has no model {on}",
                hint=f"`ollama pull {on}` fetches it; it must be the model {target.name} was trained on",
            )
        with in_words(lambda: kept_in(target.run.artifacts if target.run is not None else Path.cwd())):
            made = export_adapter(target, on, level, progress)
        check_architecture(str(made.checks["architecture"]))
        folder = target.run.artifacts if target.run is not None else made.file.parent
        record = {"name": name, "on": on, "gguf": str(made.file), "level": level, "checks": made.checks}
        report = None
        if there:
            if server.warning:
                progress.say(f"warning: {server.warning}")
            asked = _trained_answers(target, made, progress)
            try:
                report = put_adapter(
                    server, made.file, name, on, made.content, made.base, progress,
                    prove=lambda trial: _prove(server, trial, asked, progress),
                )  # fmt: skip
            except UserError as error:
                write_json(
                    folder / "deploy_adapter_report.json", plain(record | {"server": None, "failed": error.message})
                )
                raise
        address = server.url
    write_json(folder / "deploy_adapter_report.json", plain(record | {"server": asdict(report) if report else None}))
    return AdapterDeployment(made, report, manual_command(made.modelfile, name), address)


def export_adapter(target: Target, on: str, level: str, progress: Progress) -> AdapterExport:
    """The adapter of a target in its run's artifacts (else here), with a Modelfile FROM ``on``; one that lies there, made from
    the same, is taken."""
    if target.learned is None:
        raise UserError(
            f"{target.name} has nothing learned to put on a base", hint="name a run, or base+adapter; a base is in Ollama as it is"
        )  # fmt: skip
    plugin = load_plugin(TARGETS, "gguf_adapter")
    parent = target.run.artifacts if target.run is not None else Path.cwd()
    file = parent / f"gguf-adapter-{level}-{target.learned.name}" / f"{slug(target)}-adapter.gguf"
    learned, rows, config = target.learned, _rows_of(target, progress), plugin.Config(level=level)

    def make(out: Path) -> Report:
        report: Report = plugin.export(learned, out, config, progress, base=target.base.folder, probes=rows)
        return report

    taken = taken_or_made(file, made_from(target, plugin, config), make, progress)
    checks = dict(taken.report.checks)
    base = checks.pop("base")
    place, content, reason = adapter_modelfile(target, file, base, on, progress)
    accompany(target, file, progress)
    return AdapterExport(file, place, content, reason, base, checks)


def _fields(content: Modelfile) -> dict[str, Any]:
    return {name: getattr(content, name) for name in content.__dataclass_fields__}


def _rows_of(target: Target, progress: Progress) -> list[list[int]]:
    """Rows that the run kept for comparisons; none for adapters that are no run's."""
    return kept_probes(target.run, progress)[:8] if target.run is not None else []


def _trained_answers(target: Target, made: AdapterExport, progress: Progress) -> list[Asked]:
    """What comes first in the answers to a few questions, by the trained model and by its base alone, computed here in fp32."""
    from tunesmith.chat.transformers_engine import TransformersEngine

    renderer = renderer_of(target)
    room_to_ask(target, "fp32")
    progress.start("asking the trained model and its base", len(QUESTIONS), "questions")
    engine = TransformersEngine(open_weights(target, precision="fp32", as_trained=False), renderer, target.name)
    bos = renderer.tokenizer.bos_token or ""
    adds = bool(made.base.get("tokenizer.ggml.add_bos_token", False))
    found = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text, ids = renderer.text(messages, generation=True), renderer.prompt_ids(messages)
        trained = engine.logprobs(ids)[-1]
        with engine.model.disable_adapter():
            alone = engine.logprobs(ids)[-1]
        found.append(Asked(text.removeprefix(bos) if adds and bos else text, len(ids), trained, alone))
        progress.advance(1)
    engine.close()
    progress.finish()
    pieces = _pieces(renderer.tokenizer)
    return [one.with_pieces(pieces) for one in found]


def _pieces(tokenizer: Any) -> Any:
    """A function id -> the token's text as it stands inside a text: after a letter, so that a leading space is kept."""
    before = tokenizer("a", add_special_tokens=False).input_ids
    lead = len(tokenizer.decode(before))
    return lambda token: tokenizer.decode([*before, int(token)])[lead:]


def _prove(server: OllamaServer, name: str, asked: Sequence[Asked], progress: Progress) -> str:
    """Does the server count the same tokens, and is what it finds likely nearer to the trained model than to the base alone?"""
    progress.start(f"comparing {name} with the trained model", len(asked), "questions")
    to_trained: list[float] = []
    to_base: list[float] = []
    apart: list[float] = []
    for one in asked:
        reply = server.complete(name, one.prompt, {"num_predict": 1, "temperature": 0}, top=20)
        if reply.prompt_tokens and reply.prompt_tokens != one.tokens:
            raise ExportError(
                f"the server reads a question as {reply.prompt_tokens} tokens, in training it was {one.tokens}",
                hint=f"its base has another tokenizer (or another beginning token); {MERGE}",
            )
        for told in reply.top[:1]:
            mine, base, them = distances(one, told)
            to_trained += mine
            to_base += base
            apart += them
        progress.advance(1)
    if not to_trained:
        progress.finish("not told")
        return "numbers not compared: this server tells no probabilities"
    near, far, between = (sum(values) / len(values) for values in (to_trained, to_base, apart))
    words = f"log-probabilities differ from the trained model's by {near:.2g} nats, from the base's by {far:.2g}"
    progress.finish(words)
    if between >= TOO_CLOSE and near > far:
        raise ExportError(
            f"the server's model answers as its base does, not as the trained one: its {words}",
            hint=f"the adapter was not applied; update Ollama, or {MERGE}",
        )
    return words
