"""What the test server does with a model: renders its template with Go, runs its GGUF in llama.cpp, tells what it can do."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from go_runner import go_job, run_go
from tunesmith.chat.base import Sampling
from tunesmith.chat.llamacpp import LlamaCppEngine, chooser
from tunesmith.export import go_capabilities
from tunesmith.export.go_template import render_as_ollama
from tunesmith.export.go_text import GoTemplateError

# --- templates -----------------------------------------------------------------------------------------------------


def render(
    template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), think: bool | None = None
) -> str:
    """The prompt as Ollama renders it: with Go's own text/template where Go is installed. Raises GoTemplateError."""
    if shutil.which("go") is None:
        return render_as_ollama(template, messages, tools, think)
    text, error = _by_go(json.dumps(go_job(template, messages, tools, think)))
    if error:
        raise GoTemplateError(error.removeprefix("template: "))
    return text


@cache
def _by_go(job: str) -> tuple[str, str]:
    (found,) = run_go([json.loads(job)])
    return str(found["text"]), str(found["error"] or "")


@cache
def capabilities(template: str) -> list[str]:
    """What a server of this kind says a model can do, read off its template."""
    if shutil.which("go") is None:
        return list(go_capabilities.capabilities(template))
    (found,) = run_go([go_job(template, [{"role": "user", "content": "x"}])])
    able = {"tools": "tools" in found["vars"], "thinking": all(found["thinking"])}
    return ["completion", *(name for name, has in able.items() if has)]


# --- answers -------------------------------------------------------------------------------------------------------


@dataclass
class Answered:
    """An answer in pieces; ``steps``: for each token its (id, natural-log probability) pairs, most likely first."""

    pieces: list[str]
    reason: str
    prompt_tokens: int
    steps: list[list[tuple[int, float]]] = field(default_factory=list)


class Runner:
    """Runs uploaded GGUF files in llama.cpp. The last one stays open, as on a server."""

    def __init__(self, *, ends: bool = True, extra_bos: bool = False) -> None:
        self.ends, self.extra_bos = ends, extra_bos
        self._open: tuple[Path, LlamaCppEngine] | None = None

    def engine(self, gguf: Path) -> LlamaCppEngine:
        if self._open is None or self._open[0] != gguf:
            self.close()
            self._open = (gguf, LlamaCppEngine(gguf, threads=1))
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def answer(self, gguf: Path, prompt: str, options: Mapping[str, Any], top: int = 0) -> Answered:
        """The answer to a rendered prompt, to the model's end, a stop text or ``num_predict``.

        As the real server: the tokenizer adds its beginning token, control tokens are spelled out, what comes from a stop
        text on is cut off.
        """
        engine = self.engine(gguf)
        vocabulary, context = engine.vocabulary, engine._open()
        ids = engine.tokenize(prompt, add_special=True)
        if self.extra_bos:
            ids = [vocabulary.bos, *ids]
        limit = min(int(options.get("num_ctx", 4096)), engine.n_ctx)
        most = int(options.get("num_predict", -1))
        choose = chooser(Sampling(temperature=float(options.get("temperature", 0.8)), seed=int(options.get("seed", 0))))
        found = Answered([], "length", len(ids))
        text, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        context.clear()
        logits = context.feed(ids, every=False)[0]
        while len(found.pieces) < most or most < 0:
            token = choose(logits)
            if top:
                found.steps.append(most_likely(logits, top))
            if self.ends and vocabulary.ends(token):
                found.reason = "stop"
                break
            piece = decoder.decode(vocabulary.piece(token, special=True))
            found.pieces.append(piece)
            text += piece
            cut = min((text.find(word) for word in options.get("stop") or () if word in text), default=-1)
            if cut >= 0:
                found.pieces, found.reason = [text[:cut]], "stop"
                break
            if context.used >= limit:
                break
            logits = context.feed([token], every=False)[0]
        return found

    def piece(self, gguf: Path, token: int) -> bytes:
        return self.engine(gguf).vocabulary.piece(token, special=True)


def most_likely(logits: np.ndarray, top: int) -> list[tuple[int, float]]:
    """The ``top`` most likely tokens with their natural-log probabilities."""
    values = logits.astype(np.float64)
    values -= values.max() + np.log(np.exp(values - values.max()).sum())
    return [(int(i), float(values[i])) for i in np.argsort(-values, kind="stable")[:top]]
