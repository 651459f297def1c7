"""A GGUF in llama.cpp's hands: its tokenizer, and one sequence of tokens with its logits. Knows no conversation."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.chat.llama_library import (
    CONTEXT_FIELDS,
    MODEL_FIELDS,
    Batch,
    last_words,
    let_through,
    library,
    lines,
    listen,
    other_layout,
)
from tunesmith.config.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


HEADER = 2**27
"""The header of a GGUF, vocabulary included, is shorter than this many bytes."""


class Vocabulary:
    """The tokenizer inside a GGUF. Loads no weights when made by ``open``."""

    def __init__(self, model: int) -> None:
        self.lib, self.model = library(), model
        self.pointer = self.lib.llama_model_get_vocab(model)
        self.size: int = self.lib.llama_vocab_n_tokens(self.pointer)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids. ``add_special`` adds BOS/EOS as the file says; ``parse_special`` reads ``<|im_end|>`` as one token."""
        data = text.encode("utf-8")
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self.lib.llama_tokenize(self.pointer, data, len(data), buffer, room, add_special, parse_special)
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token: perhaps part of a character. Control tokens give nothing unless ``special``."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self.lib.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it; empty for -1 (there is none)."""
        return "" if token < 0 else self.lib.llama_vocab_get_text(self.pointer, token).decode("utf-8", "replace")

    @property
    def bos(self) -> int:
        return self.lib.llama_vocab_bos(self.pointer)

    @property
    def eos(self) -> int:
        return self.lib.llama_vocab_eos(self.pointer)

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp (and so Ollama) puts the beginning token before every prompt by itself."""
        return bool(self.lib.llama_vocab_get_add_bos(self.pointer))

    def ends(self, token: int) -> bool:
        """Whether llama.cpp (and so Ollama) stops an answer at ``token``."""
        return bool(self.lib.llama_vocab_is_eog(self.pointer, token))

    def chat_template(self) -> str | None:
        """The Jinja template stored in the file."""
        found = self.lib.llama_model_chat_template(self.model, None)
        return None if found is None else found.decode("utf-8")


def load_model(path: Path, *, vocabulary_only: bool = False) -> int:
    """Pointer to the loaded model; free it with ``free_model``. Raises UserError with llama.cpp's own words."""
    if not path.is_file():
        raise UserError(f"{path} is not a file", hint="give the path of a .gguf file")
    lib = library()
    params = lib.llama_model_default_params()
    params.set(MODEL_FIELDS["vocab_only"], vocabulary_only)
    listen(lib)
    lines.clear()
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    try:
        let_through()
    except BaseException:
        if model:
            free_model(model)
        raise
    if not model:
        raise UserError(
            f"llama.cpp cannot load {path}: {last_words()}",
            hint="the file may be damaged or incomplete, or of an architecture this llama.cpp does not know",
        )
    return int(model)


def free_model(model: int) -> None:
    """Free what ``load_model`` has loaded."""
    library().llama_model_free(model)
    let_through()


def load_adapter(model: int, base: Path, path: Path) -> int:
    """Pointer to a GGUF LoRA for the ``model`` loaded from ``base``, freed with it. Raises UserError with llama.cpp's own words."""
    if not path.is_file():
        raise UserError(f"{path} is not a file", hint="give the path of a .gguf file that holds an adapter")
    if _names(path, b"token_embd.weight.lora_a") and not _names(base, b"output.weight"):
        # llama.cpp would end this process: it multiplies the output by the embedding's factors, which lie the other way round
        raise UserError(
            f"{path} changes the embedding, which {base} uses for its output as well; llama.cpp cannot change only one",
            hint="merge this adapter into its base and use the merged model",
        )
    lib = library()
    listen(lib)
    lines.clear()
    adapter = lib.llama_adapter_lora_init(model, os.fsencode(path))
    let_through()
    if not adapter:
        raise UserError(
            f"llama.cpp cannot put the adapter {path} on this model: {last_words()}",
            hint="an adapter fits the model it was trained on; `tunesmith export RUN --to gguf-adapter` makes one",
        )
    return int(adapter)


def _names(path: Path, name: bytes) -> bool:
    """Whether a GGUF has a tensor of this name. Names stand behind their length in the header, the first megabytes of the file."""
    with path.open("rb") as file:
        return len(name).to_bytes(8, "little") + name in file.read(HEADER)


def adapter_text(adapter: int, key: str) -> str | None:
    """A text among the metadata of a loaded adapter; None when it has none of that name."""
    lib = library()
    room = lib.llama_adapter_meta_val_str(adapter, key.encode(), ctypes.create_string_buffer(1), 1)
    if room < 0:
        return None
    buffer = ctypes.create_string_buffer(room + 1)
    lib.llama_adapter_meta_val_str(adapter, key.encode(), buffer, room + 1)
    return buffer.value.decode("utf-8", "replace")


class Context:
    """One sequence of at most ``n_ctx`` tokens over a loaded model, with its key-value cache."""

    def __init__(self, model: int, *, n_ctx: int, threads: int, batch: int = 256) -> None:
        self.lib, self.n_ctx, self.batch = library(), n_ctx, min(batch, n_ctx)
        self.vocabulary = Vocabulary(model)
        params = self.lib.llama_context_default_params()
        wanted = {
            "n_ctx": n_ctx,
            "n_batch": self.batch,
            "n_ubatch": self.batch,
            "n_outputs_max": self.batch,
            "n_outputs_max_per_seq": self.batch,
            "n_threads": threads,
            "n_threads_batch": threads,
        }
        for name, value in wanted.items():
            params.set(CONTEXT_FIELDS[name], value)
        lines.clear()
        self.pointer: int | None = self.lib.llama_init_from_model(model, params)
        try:
            let_through()
        except BaseException:
            self.close()
            raise
        if not self.pointer:
            raise UserError(
                f"llama.cpp cannot make a context of {n_ctx} tokens: {last_words()}",
                hint="choose a shorter context, or free some memory",
            )
        got = (
            self.lib.llama_n_ctx(self.pointer) >= n_ctx,
            self.lib.llama_n_batch(self.pointer) >= self.batch,
            self.lib.llama_n_threads(self.pointer) == threads,
            self.lib.llama_n_threads_batch(self.pointer) == threads,
        )
        if not all(got):
            self.close()
            raise other_layout("context size or thread count did not arrive")
        self.used = 0

    def put_on(self, adapter: int) -> None:
        """Answer with a loaded adapter's change of the weights from now on."""
        adapters, scales = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if self.lib.llama_set_adapters_lora(self.pointer, adapters, 1, scales) != 0:
            raise UserError(f"llama.cpp cannot use the adapter: {last_words()}")

    def clear(self) -> None:
        """Forget the sequence."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.pointer), True)
        self.used = 0

    def feed(self, tokens: Sequence[int], *, every: bool, into: np.ndarray | None = None) -> np.ndarray:
        """Append ``tokens``; the logits after each (``every``: [len(tokens), vocabulary]) or the last only ([1, vocabulary]).

        ``into`` receives them, float32; else a new array is made.
        """
        import numpy as np

        size = self.vocabulary.size
        out = np.empty((len(tokens) if every else 1, size), np.float32) if into is None else into
        for start in range(0, len(tokens), self.batch):
            part = tokens[start : start + self.batch]
            last = start + len(part) == len(tokens)
            self._decode(part, every=every, last=last)
            rows = range(len(part)) if every else (range(len(part) - 1, len(part)) if last else range(0))
            for row in rows:
                found = self.lib.llama_get_logits_ith(self.pointer, row)
                if not found:
                    raise UserError(f"llama.cpp gave no logits: {last_words()}")
                out[start + row if every else 0] = np.ctypeslib.as_array(found, shape=(size,))
        return out

    def _decode(self, part: Sequence[int], *, every: bool, last: bool) -> None:
        count = len(part)
        zero = (ctypes.c_int32 * 1)(0)
        sequence = ctypes.cast(zero, ctypes.POINTER(ctypes.c_int32))
        sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*[sequence] * count)
        wanted = [1] * count if every else [0] * (count - 1) + [int(last)]
        batch = Batch(
            n_tokens=count,
            token=(ctypes.c_int32 * count)(*part),
            embd=None,
            pos=(ctypes.c_int32 * count)(*range(self.used, self.used + count)),
            n_seq_id=(ctypes.c_int32 * count)(*[1] * count),
            seq_id=sequences,
            logits=(ctypes.c_int8 * count)(*wanted),
        )
        lines.clear()
        code = self.lib.llama_decode(self.pointer, batch)
        let_through()
        if code != 0:
            raise UserError(f"llama.cpp could not run {count} tokens (code {code}): {last_words()}")
        self.used += count

    def close(self) -> None:
        if self.pointer:
            pointer, self.pointer = self.pointer, None
            self.lib.llama_free(pointer)
            let_through()
