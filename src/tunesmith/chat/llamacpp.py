"""A GGUF answered by llama.cpp in this process: the same engine that Ollama serves with.

It takes token ids for distributions, so that a comparison sees the weights and never two tokenizers.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.chat.base import Messages, Sampling
from tunesmith.chat.llama_model import Context, Vocabulary, adapter_text, free_model, load_adapter, load_model
from tunesmith.config.errors import RenderError, UserError

if TYPE_CHECKING:
    import numpy as np


class LlamaCppEngine:
    """An ``Engine`` over ``path`` (a GGUF file).

    ``tokenizer`` is the Hugging Face tokenizer of the model: conversations are then rendered and tokenized by it, exactly as in
    training. Without it the template and the tokenizer stored in the GGUF are used, as Ollama's users get them.
    ``n_ctx`` is the longest sequence in tokens (default: what the model was trained for, at most 4096). ``threads`` defaults to the
    physical cores. ``adapter``, a GGUF LoRA, changes the weights while they are used; a chat template that it carries is the one it
    was trained with and goes before the file's. ``stop_token_ids`` end an answer besides the file's own end-of-generation tokens. Raises UserError when the
    file cannot be loaded. llama.cpp's log goes to the logger ``tunesmith.llamacpp`` at debug level.
    """

    def __init__(
        self,
        path: Path,
        *,
        adapter: Path | None = None,
        tokenizer: Any = None,
        n_ctx: int | None = None,
        threads: int | None = None,
        stop_token_ids: Sequence[int] = (),
        name: str | None = None,
    ) -> None:
        self.name = name or (path.name if adapter is None else f"{path.name}+{adapter.name}")
        self._tokenizer, self._stops = tokenizer, frozenset(stop_token_ids)
        self._model: int | None = load_model(path)
        self._context: Context | None = None
        try:
            self.vocabulary = Vocabulary(self._model)
            trained = self.vocabulary.lib.llama_model_n_ctx_train(self._model)
            self.n_ctx = n_ctx or min(trained, 4096)
            self._context = Context(self._model, n_ctx=self.n_ctx, threads=threads or physical_cores())
            self._template = self.vocabulary.chat_template()
            if adapter is not None:
                loaded = load_adapter(self._model, path, adapter)
                self._context.put_on(loaded)
                self._template = adapter_text(loaded, "tokenizer.chat_template") or self._template
        except BaseException:
            self.close()
            raise

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids by the GGUF's own tokenizer; ``add_special`` adds BOS/EOS where the file says so."""
        return self.vocabulary.tokenize(text, add_special=add_special)

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of the conversation up to where the answer begins. Raises RenderError."""
        if self._tokenizer is not None:
            try:
                found = self._tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except Exception as error:
                raise RenderError(f"the chat template cannot render this conversation: {error}") from error
            return [int(token) for token in found]
        if self._template is None:
            raise RenderError(f"{self.name} holds no chat template", hint="export the model with its chat template")
        return self.tokenize(render_template(self._template, messages, self.vocabulary))

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """The answer, piece by piece; whole characters only. Stops at an end-of-generation token or a full context."""
        self._open()
        prompt = self.prompt(messages)
        if len(prompt) >= self.n_ctx:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, the context holds {self.n_ctx}",
                hint="shorten it, or open the engine with a longer context",
            )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self._tokens(prompt, sampling):
            if self._ends(token):
                break
            text = decoder.decode(self.vocabulary.piece(token))
            if text:
                yield text
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def answer_ids(self, prompt: Sequence[int], sampling: Sampling) -> tuple[list[int], bool]:
        """The tokens of an answer to ``prompt`` (ids), and whether it came to its end within ``sampling.max_tokens``."""
        found: list[int] = []
        for token in self._tokens(prompt, sampling):
            if self._ends(token):
                return found, True
            found.append(token)
        return found, False

    def _ends(self, token: int) -> bool:
        return self.vocabulary.ends(token) or token in self._stops

    def _tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """One token after another, end-of-generation tokens too, until nobody asks, ``max_tokens`` or a full context."""
        context, choose = self._open(), chooser(sampling)
        context.clear()
        logits = context.feed(prompt, every=False)
        for _ in range(min(sampling.max_tokens, self.n_ctx - len(prompt))):
            token = choose(logits[0])
            yield token
            if context.used >= self.n_ctx:
                break
            logits = self._open().feed([token], every=False)

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Natural-log probabilities of the next token after each position: float32, [len(tokens), vocabulary].

        Nothing is added to ``tokens``. Raises UserError for an empty or too long sequence, or ids outside the vocabulary.
        """
        context = self._open()
        if not 0 < len(tokens) <= self.n_ctx:
            raise UserError(f"{len(tokens)} tokens were given, between 1 and {self.n_ctx} can be run")
        if min(tokens) < 0 or max(tokens) >= self.vocabulary.size:
            raise UserError(f"token ids must be between 0 and {self.vocabulary.size - 1}")
        context.clear()
        out = context.feed(tokens, every=True)
        for row in out:  # row by row: no second array of this size
            row -= row.max()
            row -= _log_sum_exp(row)
        return out

    def continuation(self, prompt: Sequence[int], most: int, *, stop: bool = True) -> list[int]:
        """The most likely token after ``prompt``, again and again: at most ``most``; without ``stop`` exactly so many."""
        context = self._open()
        context.clear()
        logits, found = context.feed(prompt, every=False), []
        for _ in range(min(most, self.n_ctx - len(prompt))):
            token = int(logits[0].argmax())
            if stop and (self.vocabulary.ends(token) or token in self._stops):
                break
            found.append(token)
            if len(found) < most and context.used < self.n_ctx:
                logits = context.feed([token], every=False)
        return found

    def close(self) -> None:
        """Free the model and its cache; calling twice is harmless."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        try:
            if context is not None:
                context.close()
        finally:
            if model is not None:
                free_model(model)

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Context:
        if self._context is None:
            raise UserError(f"{self.name} is closed")
        return self._context


def _log_sum_exp(row: np.ndarray) -> float:
    """log Σ exp(row), summed in float64; ``row``'s maximum is 0."""
    import numpy as np

    return float(np.log(np.exp(row).sum(dtype=np.float64)))


def physical_cores() -> int:
    """Cores without hyper-threads; at least 1."""
    import psutil

    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def chooser(sampling: Sampling) -> Any:
    """A function logits [vocabulary] -> token id. Repeatable for a seed."""
    import numpy as np

    if sampling.temperature <= 0:
        return lambda logits: int(logits.argmax())
    random = np.random.default_rng(sampling.seed)

    def choose(logits: np.ndarray) -> int:
        scaled = logits.astype(np.float64) / sampling.temperature
        weights = np.exp(scaled - scaled.max())
        order = np.argsort(-weights, kind="stable")
        total = weights.sum()
        # the smallest set whose probability reaches top_p: a token stays while those before it have not reached it
        before = np.cumsum(weights[order]) - weights[order]
        kept = order[before < sampling.top_p * total]
        kept = kept if len(kept) else order[:1]
        return int(random.choice(kept, p=weights[kept] / weights[kept].sum()))

    return choose


def render_template(template: str, messages: Messages, vocabulary: Vocabulary) -> str:
    """The conversation as text, by ``template`` in the Jinja sandbox of transformers. Raises RenderError."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[list(messages)],
            chat_template=template,
            add_generation_prompt=True,
            bos_token=vocabulary.text(vocabulary.bos),
            eos_token=vocabulary.text(vocabulary.eos),
        )
    except Exception as error:
        raise RenderError(f"the chat template cannot render this conversation: {error}") from error
    return str(rendered[0])
